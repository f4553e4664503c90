"""Coroutines that answer calls of the native transport, on an event loop of their own: unary ones and streams."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from serve.context import RequestContext
from serve.errors import Cancelled, HeadroomError, Internal
from serve.ingress.grpc_methods import StreamMethod

if TYPE_CHECKING:
    from kernels.transport import Call, Transport

log = logging.getLogger(__name__)

Done = Callable[[bytes | None, HeadroomError | None], None]


class AsyncLoop:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        """Begins to turn."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it, and what still runs on it."""
        self.loop.call_soon_threadsafe(self._stop)
        self._thread.join(timeout=5)

    def _stop(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_soon(self.loop.stop)


class _AsyncCall:
    """One call, answered by a task: its last message, if it has one, or its error, are told to `done`."""

    def __init__(self, context: RequestContext, done: Done) -> None:
        self._context = context
        self._done = done
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    def start(self, on: AsyncLoop) -> None:
        """From any thread."""
        self._loop = on.loop
        self._loop.call_soon_threadsafe(self._begin)

    def cancel(self, *, is_cancelled: bool) -> None:
        """The client has left, or the deadline has passed: nobody waits for the answer. From any thread."""
        self._context.cancelled = is_cancelled
        self._loop.call_soon_threadsafe(lambda: self._task.cancel() if self._task is not None else None)

    @abstractmethod
    async def _answer(self) -> bytes | None: ...

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        body: bytes | None = None
        error: HeadroomError | None = None
        try:
            body = await self._answer()
        except HeadroomError as known:
            error = known
        except asyncio.CancelledError:
            error = Cancelled("the call has ended")
        except Exception:
            log.exception("method failed", extra={"request_id": self._context.request_id})
            error = Internal()
        self._done(body, error)


class AsyncWork(_AsyncCall):
    """One coroutine that answers a unary call."""

    def __init__(self, answer: Awaitable[bytes], context: RequestContext, done: Done) -> None:
        super().__init__(context, done)
        self._awaitable = answer

    async def _answer(self) -> bytes:
        return await self._awaitable


class AsyncStream(_AsyncCall):
    """One call of a `StreamMethod`."""

    def __init__(
        self, call: Call, transport: Transport, method: StreamMethod, context: RequestContext, done: Done
    ) -> None:
        super().__init__(context, done)
        self._call = call
        self._transport = transport
        self._method = method
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the transport's credit
        self._is_writable = asyncio.Event()

    async def _answer(self) -> None:
        async with aclosing(self._method(self._read(), self._context)) as answers:
            async for message in answers:
                self._is_writable.clear()
                if self._transport.send(self._call, message):
                    await self._is_writable.wait()

    async def _read(self) -> AsyncIterator[bytes]:
        while (payload := await self._messages.get()) is not None:
            yield payload
            self._transport.grant(self._call, 1)

    def on_message(self, payload: bytes) -> None:
        """A message."""
        self._loop.call_soon_threadsafe(self._messages.put_nowait, payload)

    def on_half_closed(self) -> None:
        """The client sends no more."""
        self._loop.call_soon_threadsafe(self._messages.put_nowait, None)

    def on_writable(self) -> None:
        """The client has taken what had piled up."""
        self._loop.call_soon_threadsafe(self._is_writable.set)
