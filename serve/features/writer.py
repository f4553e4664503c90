"""The store's one writer thread: takes one piece of work at a time, so that its caller can stop waiting for it.

A commit may block on another process's lock or on a slow disk; the runner that ordered it must answer on time all the
same. Bounded: while a late commit is still under way, the next one is refused at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from serve.features.store import StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Job:
    """Work, and where its result or failure is left."""

    __slots__ = ("error", "is_done", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.is_done = threading.Lock()
        self.is_done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Owns the thread. `tick` runs on it about every `every_s`, between jobs. `run` is for one thread at a time."""

    def __init__(self, tick: Callable[[], None], *, every_s: float) -> None:
        self._tick = tick
        self._every_s = every_s
        self._job: _Job | None = None
        self._is_closed = False
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T], deadline_ns: int) -> T:
        """The work's result, or its StoreFailed; raises StoreFailed "busy" at once, "late" at the deadline."""
        if self._is_closed:
            raise StoreFailed("closed")
        if self._job is not None:
            raise StoreFailed("busy")
        job = self._job = _Job(work)
        self._wake.release()
        if not job.is_done.acquire(timeout=max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)):
            raise StoreFailed("late")
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def close(self) -> None:
        """Ends after the job under way and one last tick."""
        self._is_closed = True
        self._wake.release()
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        next_tick_s = time.monotonic() + self._every_s
        while not self._is_closed:
            self._wake.acquire(timeout=max(0.0, next_tick_s - time.monotonic()))
            self._do_job()
            if time.monotonic() >= next_tick_s:
                self._do_tick()
                next_tick_s = time.monotonic() + self._every_s
        self._do_tick()

    def _do_job(self) -> None:
        job = self._job
        if job is None:
            return
        try:
            job.result = job.work()
        except StoreFailed as failure:
            job.error = failure
        except Exception:
            log.exception("the store's writer failed")
            job.error = StoreFailed("error")
        self._job = None
        job.is_done.release()

    def _do_tick(self) -> None:
        try:
            self._tick()
        except StoreFailed as failure:
            log.warning("flushing the store failed: %s", failure)
        except Exception:
            log.exception("flushing the store failed")
