"""A server under test: a command enters; a running process, its CPU time and its niceness leave.

Used for our own server and for the peers alike, so that all are started, measured and stopped in one way.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[1]
_READY_S = 180.0
_STOP_S = 60.0


def free_ports(num: int) -> list[int]:
    """Ports of 127.0.0.1 nobody listens on now, below those that the kernel gives out to whoever asks for any: a server
    that binds a moment later still finds them free.
    """
    ports: list[int] = []
    while len(ports) < num:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


@dataclass
class Subject:
    """One server process tree; a context manager. `serves` picks, by command line, the processes that answer requests."""

    name: str
    command: Sequence[str]
    folder: Path
    ready_url: str
    ready_body: bytes | None = None
    """JSON posted to `ready_url`; a GET without it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    serves: Callable[[str], bool] = lambda _: True
    start_s: float = 0.0
    """Seconds from the command to the first 200 of `ready_url`."""

    def __enter__(self) -> Self:
        began_s = time.monotonic()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=ROOT, env={**os.environ, **self.environment}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.monotonic() - began_s
        return self

    def __exit__(self, *_: object) -> None:
        tree = self._tree()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(tree, timeout=10)[1]:
            process.kill()

    def _wait_until_ready(self) -> None:
        give_up_s = time.monotonic() + _READY_S
        while time.monotonic() < give_up_s and self._process.poll() is None:
            if answers(self.ready_url, self.ready_body):
                return
            time.sleep(0.1)
        text = (self.folder / "server.log").read_text(errors="replace")
        raise RuntimeError(f"{self.name} did not become ready at {self.ready_url}; its log ends:\n{text[-3000:]}")

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def processes(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        found = []
        for process in self._tree():
            try:
                if self.serves(" ".join(process.cmdline())):
                    found.append(process)
            except psutil.Error:  # ended meanwhile
                continue
        return found

    def cpu_s(self) -> float:
        """User and system time of those processes, and of their children that ended, so far."""
        return sum(sum(process.cpu_times()[:4]) for process in self.processes())

    def niceness(self) -> int:
        """The largest of those processes' threads' nice values: 0 where the server has its full share."""
        return max(process.nice() for process in self.processes())


class CpuWindow(threading.Thread):
    """Cores a subject uses from `after_s` to `after_s + for_s`; `start`, then `cores`."""

    def __init__(self, subject: Subject, after_s: float, for_s: float) -> None:
        super().__init__(daemon=True)
        self._subject, self._after_s, self._for_s = subject, after_s, for_s
        self._cores = 0.0

    def run(self) -> None:
        """Called by `start`."""
        time.sleep(self._after_s)
        began_s, began_cpu_s = time.monotonic(), self._subject.cpu_s()
        time.sleep(self._for_s)
        self._cores = (self._subject.cpu_s() - began_cpu_s) / (time.monotonic() - began_s)

    def cores(self) -> float:
        """CPU seconds per second; waits for the window's end."""
        self.join()
        return self._cores


def answers(url: str, body: bytes | None = None) -> bool:
    """Whether a GET, or the POST of a JSON body, is answered with 200."""
    try:
        request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def run_tool(command: Sequence[str], **environment: str) -> tuple[str, float]:
    """Output and CPU cores (CPU seconds per second) of a load tool; raises RuntimeError with its words if it fails."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output[-2000:]}")
    return output, (usage.ru_utime + usage.ru_stime) / (time.monotonic() - began_s)


def environment_of(subject: Subject) -> dict[str, Any]:
    """What a result records about a subject."""
    return {"niceness": subject.niceness(), "processes": len(subject.processes()), "start_s": round(subject.start_s, 1)}
