"""The store's two threads: a writer that does one job while its caller may stop waiting, and a periodic housekeeper.

A commit may block on another process's lock or on a slow disk; the runner that ordered it must answer on time all the
same. Bounded: while a late commit is still under way, the next one is refused at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from serve.features.store import StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_S = 5.0
"""How long closing waits for what is under way; another process's lock may hold it for longer."""


class _Job:
    """Work, and where its result or failure is left."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = threading.Lock()  # held until the work is done; its wait is the cheapest there is (no condition)
        self.done.acquire()
        self.result: Any = None
        self.error: StoreFailed | None = None


class Writer:
    """Owns a thread that runs one job at a time. `run` is for one thread at a time."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._last: _Job | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T], deadline_ns: int) -> T:
        """The work's result, or its StoreFailed; raises StoreFailed "busy" at once, "late" at the deadline."""
        if self._is_closed:
            raise StoreFailed("closed", "the store is closed")
        if self._last is not None and self._last.done.locked():
            raise StoreFailed("busy", "an earlier commit is still under way")
        job = self._last = _Job(work)
        self._jobs.put(job)
        if not job.done.acquire(timeout=_remaining_s(deadline_ns)):
            raise StoreFailed("late", "the commit was not done by its deadline")
        job.done.release()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def close(self) -> None:
        """Ends after the job under way, or leaves it to the daemon thread when it takes too long."""
        self._is_closed = True
        self._jobs.put(None)
        self._thread.join(timeout=_CLOSE_S)

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.result = job.work()
            except StoreFailed as failure:
                job.error = StoreFailed(failure.event, str(failure))  # without the frames, which keep files open
            except Exception as error:
                log.exception("the store's writer failed")
                job.error = StoreFailed("error", str(error))
            job.done.release()


class Housekeeper:
    """Owns a thread that runs `work` every `every_s` seconds until closed. A failure is logged, not raised."""

    def __init__(self, work: Callable[[], None], *, every_s: float) -> None:
        self._work = work
        self._every_s = every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="store-housekeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends after the round under way, or leaves it to the daemon thread when it takes too long."""
        self._closing.set()
        self._thread.join(timeout=_CLOSE_S)

    def _loop(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self._work()
            except StoreFailed as failure:
                log.warning("the store's housekeeping failed: %s", failure)
            except Exception:
                log.exception("the store's housekeeping failed")


def _remaining_s(deadline_ns: int) -> float:
    """Seconds until then, within what a lock's wait accepts."""
    return min(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9), threading.TIMEOUT_MAX)
