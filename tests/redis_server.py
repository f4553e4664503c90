"""A Redis of a test's own: Debian's, on a free port, in a folder of its own, with a password."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from benchmarks.subject import free_ports

PASSWORD = "opensesame"
_START_S = 10


def until(is_so: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """Polls a real condition; fails with its name."""
    give_up_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < give_up_s, what
        pause.wait(0.02)


class RedisServer:
    """Starts, and may be killed and started again on the same port and files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed")
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD)

    def start(self) -> RedisServer:
        command = [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--requirepass", PASSWORD, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
            "--daemonize", "no", *self._arguments,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up_s = time.monotonic() + _START_S
        while True:
            try:
                self.client().ping()
                return self
            except redis.ConnectionError:
                assert time.monotonic() < give_up_s, "redis-server does not answer"
                assert self._process.poll() is None, "redis-server ended"

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def disk(self) -> bytes:
        """Everything in its files."""
        return b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())
