"""Work that waits, for the disk or a lock, off the listeners' loops: few threads, a bound, the request's deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve.context import RequestContext
from serve.errors import DeadlineExceeded, Overloaded

T = TypeVar("T")

_MAX_WAITING = 64


class BlockingWork:
    """Shared by the listeners; `run` may be called from any loop."""

    def __init__(self, waited_for: str, *, num_threads: int = 2) -> None:
        """`waited_for`: what keeps callers waiting, as errors name it."""
        self._waited_for = waited_for
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="blocking")
        self._lock = threading.Lock()
        self._num_waiting = 0

    async def run(self, context: RequestContext, work: Callable[[], T]) -> T:
        """What `work` gives. Raises Overloaded when too much waits, DeadlineExceeded at the request's deadline: what has
        not begun by then never does; what has begun goes on, and nobody hears of it.
        """
        remaining_s = context.deadline.remaining_ns(time.monotonic_ns()) / 1e9
        if remaining_s <= 0:
            raise DeadlineExceeded(f"the deadline had passed before {self._waited_for} was asked")
        if self._num_waiting >= _MAX_WAITING:
            text = f"{_MAX_WAITING} requests wait for {self._waited_for}, which are allowed"
            raise Overloaded(text, reason="queue_full")
        with self._lock:
            self._num_waiting += 1
        future = self._threads.submit(work)
        future.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), remaining_s)
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while {self._waited_for} was waited for") from None

    def _ended(self, _: object) -> None:
        """Done, or cancelled before it began: work that has begun counts until it ends, whoever still waits."""
        with self._lock:
            self._num_waiting -= 1

    def close(self) -> None:
        """Lets the threads end after what they do, and what waits never begin."""
        self._threads.shutdown(wait=False, cancel_futures=True)
