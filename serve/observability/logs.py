"""The access log, and the format of the server's ordinary logs: one JSON object per line.

Entries of a batch enter from the threads that answer it, which only hand them over; one thread of the log's own formats
and writes. Called by the listeners, once per batch of answers. Headers and bodies never enter, so no secret can leave.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import orjson

from serve.observability.line_budget import LineBudget
from serve.observability.log_file import LogFile

MAX_PENDING_ENTRIES: Final = 32_768
TICK_S: Final = 0.05
_REPORT_NS: Final = 1_000_000_000
_CLOSE_TIMEOUT_S: Final = 5.0
_MAX_TEXT: Final = 256
_NS_PER_S: Final = 1_000_000_000

Clock = Callable[[], int]


class AccessEntry(msgspec.Struct, frozen=True, gc=False):
    """One answered request. `error` is the kind of a HeadroomError; `status` HTTP's number or gRPC's name."""

    request_id: str
    protocol: str
    endpoint: str
    status: str
    duration_ns: int
    items: int = 1
    bytes_in: int = 0
    bytes_out: int = 0
    traceparent: str | None = None
    pipeline: str | None = None
    degraded: tuple[str, ...] = ()
    tenant: str | None = None
    error: str | None = None


class AccessLog:
    """Writes access lines to `path` (two files of `max_bytes` at most) or stderr; `record` never waits for them.

    Over `max_lines_per_s` errors are kept first. What was left out, and why, is a line of its own.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_lines_per_s: int = 1_000,
        max_bytes: int = 64 * 1024 * 1024,
        wall_clock_ns: Clock = time.time_ns,
        clock_ns: Clock = time.monotonic_ns,
    ) -> None:
        self._file = LogFile(path, max_bytes)
        self._budget = LineBudget(max_lines_per_s, clock_ns())
        self._wall_clock_ns = wall_clock_ns
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._pending: list[tuple[int, Sequence[AccessEntry]]] = []
        self._num_pending = 0
        self._left_out = {"rate": 0, "queue_full": 0, "write_failed": 0}
        self._reported_ns = 0
        self._has_work = threading.Event()
        self._is_closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="access-log", daemon=True)

    def start(self) -> None:
        """Starts the writer thread; entries recorded before wait for it."""
        self._writer.start()

    def set_rate(self, max_lines_per_s: int) -> None:
        """Changes how many lines a second are written from now on."""
        self._budget.set_rate(max_lines_per_s)

    def record(self, entries: Sequence[AccessEntry]) -> None:
        """Hands the entries of one batch over, stamped with the present time; the caller must not change them after."""
        wall_ns = self._wall_clock_ns()
        with self._lock:
            if self._num_pending + len(entries) > MAX_PENDING_ENTRIES:
                self._left_out["queue_full"] += len(entries)
                return
            self._num_pending += len(entries)
            self._pending.append((wall_ns, entries))
        if not self._has_work.is_set():
            self._has_work.set()

    def close(self) -> None:
        """Writes what is pending and ends the thread; waits 5 s at most for a disk that hangs."""
        self._is_closing.set()
        self._has_work.set()
        if self._writer.is_alive():
            self._writer.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._is_closing.is_set():
            # Wakes without work only to report what was left out.
            self._has_work.wait(timeout=1.0 if any(self._left_out.values()) else None)
            self._is_closing.wait(TICK_S)
            self._has_work.clear()
            self._drain()
            self._report_left_out(is_last=False)
        self._drain()
        self._report_left_out(is_last=True)
        self._file.close()

    def _drain(self) -> None:
        with self._lock:
            pending, self._pending, self._num_pending = self._pending, [], 0
        stamped = [(wall_ns, entry) for wall_ns, entries in pending for entry in entries]
        kept = self._budget.choose(stamped, lambda one: one[1].error is not None, self._clock_ns())
        lines = [format_entry(wall_ns, entry) for wall_ns, entry in kept]
        num_failed = self._file.write(lines) if lines else 0
        with self._lock:
            self._left_out["rate"] += len(stamped) - len(kept)
            self._left_out["write_failed"] += num_failed

    def _report_left_out(self, *, is_last: bool) -> None:
        """Writes how many lines were left out since the last report, once a second at most."""
        with self._lock:
            left_out = {reason: num for reason, num in self._left_out.items() if num}
        now_ns = self._clock_ns()
        if not left_out or (now_ns - self._reported_ns < _REPORT_NS and not is_last):
            return
        line = orjson.dumps({"time": rfc3339(self._wall_clock_ns()), "left_out": left_out}) + b"\n"
        self._reported_ns = now_ns
        if self._file.write([line]) == 0:
            with self._lock:
                for reason, num in left_out.items():
                    self._left_out[reason] -= num


def format_entry(wall_ns: int, entry: AccessEntry) -> bytes:
    """The entry as one line of JSON; text from outside is clipped, and what is not Unicode replaced."""
    fields = {
        "time": rfc3339(wall_ns),
        "request_id": _clip(entry.request_id),
        "trace_id": _trace_id(entry.traceparent),
        "protocol": entry.protocol,
        "endpoint": _clip(entry.endpoint),
        "status": entry.status,
        "duration_ms": round(entry.duration_ns / 1e6, 3),
        "items": entry.items,
        "pipeline": entry.pipeline,
        "degraded": entry.degraded,
        "tenant": None if entry.tenant is None else _clip(entry.tenant),
        "error": entry.error,
        "bytes_in": entry.bytes_in,
        "bytes_out": entry.bytes_out,
    }
    return orjson.dumps(fields) + b"\n"


def rfc3339(wall_ns: int) -> str:
    """A wall clock time in UTC with milliseconds: 2026-01-31T08:05:09.123Z."""
    seconds, rest_ns = divmod(wall_ns, _NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns // 1_000_000:03d}Z"


def _clip(text: str) -> str:
    return text[:_MAX_TEXT].encode(errors="replace").decode()


def _trace_id(traceparent: str | None) -> str | None:
    """The second field of a W3C traceparent (version-traceid-parentid-flags), None when it is not one."""
    fields = traceparent.split("-") if traceparent is not None else []
    return fields[1] if len(fields) >= 4 and len(fields[1]) == 32 else None


class _JsonFormatter(logging.Formatter):
    """A log record as one JSON object: time, level, logger, message, what `extra` added, and the exception if any."""

    _STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": rfc3339(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().encode(errors="replace").decode(),
            **{name: value for name, value in vars(record).items() if name not in self._STANDARD},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def configure_logging(level: str) -> None:
    """Sends the server's own loggers to stderr as JSON from `level` ("debug" … "error") up; may be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    for name in ("serve", "kernels"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
