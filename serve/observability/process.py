"""Which process wrote a metrics file, and does it still run?

Takes the identity recorded in a file's header; answers from /proc. Called when files are made, read and folded.
A process id alone is not an identity: it is reused, so the start time and the machine's boot go with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process of one boot of one machine. `start_ticks` is field 22 of /proc/<pid>/stat; `boot` see `boot_number`."""

    pid: int
    start_ticks: int
    boot: int


NO_PROCESS = ProcessIdentity(pid=0, start_ticks=0, boot=0)
"""Owner of what no process owns; never alive."""


def this_process() -> ProcessIdentity:
    """Identity of the caller's process; raises OSError without a readable /proc."""
    ticks = _start_ticks(os.getpid())
    if ticks is None:
        raise OSError("/proc/self/stat could not be read; metrics files need it to tell a live process from a dead one")
    return ProcessIdentity(os.getpid(), ticks, boot_number())


def boot_number() -> int:
    """A number of this boot of the machine, 60 bits of the kernel's boot id; raises OSError without /proc."""
    return int(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:15], 16)


def is_alive(process: ProcessIdentity) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    if process.pid <= 0 or process.boot != boot_number():
        return False
    return _start_ticks(process.pid) == process.start_ticks


def _start_ticks(pid: int) -> int | None:
    """Start time of a running process in clock ticks since boot; None when there is none of this id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command in parentheses may hold spaces and parentheses itself; what follows its last one is regular.
    fields = stat.rpartition(b")")[2].split()
    state, num_threads, start = fields[0], int(fields[17]), int(fields[19])
    # A killed process's first thread can be a zombie while another thread has still an instruction to go.
    has_ended = state in (b"Z", b"X") and num_threads <= 1
    return None if has_ended else start
