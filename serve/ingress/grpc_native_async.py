"""Coroutines that answer calls of the native transport, on an event loop of their own: unary ones and streams."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serve.context import RequestContext
from serve.errors import Cancelled, HeadroomError, Internal
from serve.ingress.grpc_methods import StreamMethod
from serve.ingress.grpc_native_stream import UNSENT_HIGH

log = logging.getLogger(__name__)

NativeCall = Any
Transport = Any


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


class AsyncWork:
    """One coroutine that answers a unary call."""

    def __init__(self, context: RequestContext, done: Callable[[bytes, HeadroomError | None], None]) -> None:
        self._context = context
        self._done = done
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    def start(self, on: AsyncLoop, answer: Awaitable[bytes]) -> None:
        """From any thread."""
        self._loop = on.loop
        self._loop.call_soon_threadsafe(self._begin, answer)

    def _begin(self, answer: Awaitable[bytes]) -> None:
        self._task = self._loop.create_task(self._run(answer))

    async def _run(self, answer: Awaitable[bytes]) -> None:
        body, error = b"", None
        try:
            body = await answer
        except HeadroomError as known:
            error = known
        except asyncio.CancelledError:
            error = Cancelled("the call has ended")
        except Exception:
            log.exception("method failed", extra={"request_id": self._context.request_id})
            error = Internal()
        self._done(body, error)

    def cancel(self, *, is_cancelled: bool) -> None:
        """The call has ended: nobody waits for the answer. From any thread."""
        self._context.cancelled = is_cancelled
        self._loop.call_soon_threadsafe(lambda: self._task.cancel() if self._task is not None else None)


class AsyncStream:
    """One call of a `StreamMethod`."""

    def __init__(
        self,
        call: NativeCall,
        transport: Transport,
        context: RequestContext,
        done: Callable[[HeadroomError | None], None],
    ) -> None:
        self._call = call
        self._transport = transport
        self._context = context
        self._done = done
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the transport's credit
        self._is_writable = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None

    def start(self, on: AsyncLoop, method: StreamMethod) -> None:
        """From the listener's thread."""
        self._loop = on.loop
        self._loop.call_soon_threadsafe(self._begin, method)

    def _begin(self, method: StreamMethod) -> None:
        self._task = self._loop.create_task(self._run(method))

    async def _run(self, method: StreamMethod) -> None:
        error: HeadroomError | None = None
        try:
            async for message in method(self._read(), self._context):
                self._is_writable.clear()
                if self._transport.send(self._call, message) > UNSENT_HIGH:
                    await self._is_writable.wait()
        except HeadroomError as known:
            error = known
        except asyncio.CancelledError:
            error = Cancelled("the call has ended")
        except Exception:
            log.exception("stream failed", extra={"request_id": self._context.request_id})
            error = Internal()
        self._done(error)

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

    def cancel(self, *, is_cancelled: bool) -> None:
        """The client has left, or the deadline has passed. From any thread."""
        self._context.cancelled = is_cancelled
        self._loop.call_soon_threadsafe(lambda: self._task.cancel() if self._task is not None else None)
