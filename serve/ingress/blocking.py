"""Work that waits, for the disk or a lock, off the listeners' loops: few threads, a bound, the request's deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve.context import RequestContext
from serve.errors import DeadlineExceeded, Overloaded

T = TypeVar("T")

_NUM_THREADS = 2
_MAX_WAITING = 64


class BlockingWork:
    """Shared by the listeners; `run` may be called from any loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="blocking")
        self._num_waiting = 0

    async def run(self, context: RequestContext, work: Callable[[], T]) -> T:
        """What `work` gives. Raises Overloaded when too much waits, DeadlineExceeded at the request's deadline; the
        work goes on then, and nobody hears of it.
        """
        if self._num_waiting >= _MAX_WAITING:
            raise Overloaded(f"{_MAX_WAITING} requests wait for the store, which are allowed", reason="queue_full")
        self._num_waiting += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
            remaining_s = context.deadline.remaining_ns(time.monotonic_ns()) / 1e9
            return await asyncio.wait_for(asyncio.shield(future), max(0.0, remaining_s))
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the store was waited for") from None
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Ends the threads after what they do."""
        self._threads.shutdown(wait=True, cancel_futures=True)
