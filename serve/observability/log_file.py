"""The file behind the access log: finished lines enter; disk, two files long, or stderr is what they leave to.

Called by the access log's own thread only. Several replicas may write one path: each write is one append, and who
rotates holds a lock. A full disk loses lines, never the writer.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_STDERR: Final = 2


class LogFile:
    """Appends lines to `path`, moved to `path`.1 before it would pass `max_bytes`; to stderr when `path` is None."""

    def __init__(self, path: Path | None, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._fd: int | None = None
        self._ends_torn = False

    def write(self, lines: Sequence[bytes]) -> int:
        """Appends lines, each ending in a newline; returns how many could not be written. The next call tries anew."""
        content = b"".join(lines)
        try:
            num_written = self._append(self._target(len(content)), content)
        except OSError:
            num_written = 0
        return content.count(b"\n", num_written)

    def close(self) -> None:
        """Closes the file; a later write opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, fd: int, content: bytes) -> int:
        """Writes as much as goes in; returns the number of content's bytes written. Raises OSError before the first."""
        if self._ends_torn:
            os.write(fd, b"\n")
        num_written = os.write(fd, content)
        try:
            while num_written < len(content):
                num_written += os.write(fd, content[num_written:])
        except OSError:
            pass
        self._ends_torn = not content[:num_written].endswith(b"\n")
        return num_written

    def _target(self, num_bytes: int) -> int:
        """Descriptor to append to: reopened after another process rotated, rotated when it is full."""
        if self._path is None:
            return _STDERR
        fd = self._fd if self._fd is not None and _is_open_at(self._fd, self._path) else self._reopen()
        size_bytes = os.fstat(fd).st_size
        if size_bytes > 0 and size_bytes + num_bytes > self._max_bytes:
            self._rotate(fd, self._path)
            fd = self._reopen()
        return fd

    def _reopen(self) -> int:
        assert self._path is not None
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, _FLAGS, 0o640)
        return self._fd

    @staticmethod
    def _rotate(fd: int, path: Path) -> None:
        # The lock goes with the file that is moved: who waited for it finds another file at the path and leaves it be.
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_open_at(fd, path):
            path.replace(path.with_name(f"{path.name}.1"))


def _is_open_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
