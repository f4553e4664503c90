"""Who has a TCP port: for the message of `AddressInUse`.

In: a host and port that could not be bound. Out: "pid 1234 (nginx -g daemon off;)", or that it cannot be seen, from
the kernel's tables and the descriptors of the processes we may look into. Called by `serve.ingress.sockets`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"
_MAX_COMMAND_CHARS = 120


class _Row(NamedTuple):
    """A socket in the kernel's table: `host` in the kernel's hexadecimal, `state` 0A when it listens."""

    host: str
    port: int
    state: str
    inode: str


def describe_occupant(host: str, port: int) -> str:
    """The process that has the port, listeners first; never raises."""
    rows = [row for row in _rows() if row.port == port and row.inode != "0" and _overlap(row.host, _hexadecimal(host))]
    for row in sorted(rows, key=lambda row: row.state != _LISTEN):
        pid = _pid_of(row.inode)
        if pid is not None:
            return describe_process(pid)
    return "a process we cannot look into (another user's or another container's)"


def describe_process(pid: int) -> str:
    """`pid 1234 (its command line)`, shortened."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        command = "ended meanwhile"
    return f"pid {pid} ({command[:_MAX_COMMAND_CHARS]})"


def _rows() -> Iterator[_Row]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            host, _, port = fields[1].partition(":")
            yield _Row(host, int(port, 16), fields[3], fields[9])


def _hexadecimal(host: str) -> str:
    """As the kernel prints it: each 32-bit word in the machine's byte order."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed))


def _overlap(held: str, asked: str) -> bool:
    """Equal, or either is the wildcard; an IPv6 socket's last word is the IPv4 address where it has one."""
    return held.endswith(asked) or not held.strip("0") or not asked.strip("0")


def _pid_of(inode: str) -> int | None:
    """The lowest pid that has the socket open, None when we may not look into any that has."""
    pids = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return next((pid for pid in pids if f"socket:[{inode}]" in _descriptors(pid)), None)


def _descriptors(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")
        except OSError:
            continue
