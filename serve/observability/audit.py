"""The audit log: who asked for what to be known or forgotten, and what the server forgot by itself.

Called by handlers and housekeepers, seldom: each line is on its way to the disk before the call returns. No names in it:
customers appear as the SHA-256 of their id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import orjson

from serve.observability.log_file import LogFile

log = logging.getLogger(__name__)

_MAX_BYTES = 64 * 1024 * 1024


class AuditLog:
    """Appends JSON lines to `path`, two files of 64 MiB at most. Thread-safe; several replicas may share the path."""

    def __init__(self, path: Path) -> None:
        self._file = LogFile(path, _MAX_BYTES)
        self._lock = threading.Lock()

    def write(self, event: str, details: Mapping[str, object]) -> None:
        """Adds a line: when, what, and the details."""
        when = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = orjson.dumps({"time": when, "event": event, **details}) + b"\n"
        with self._lock:
            if self._file.write([line]):
                log.error("an audit line could not be written: %s", line.decode().strip())

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._file.close()
