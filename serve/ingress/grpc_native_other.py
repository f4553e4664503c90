"""Calls on the native transport that no batch answers: health, metadata, records, reflection; and wrong ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kernels.transport import EventKind
from serve.context import RequestContext
from serve.errors import HeadroomError, Internal
from serve.ingress.grpc_metadata import Trailing, error_trailing
from serve.ingress.grpc_methods import GrpcMethods
from serve.ingress.grpc_native_async import AsyncLoop, AsyncStream, AsyncWork
from serve.ingress.ledger import Ledger
from serve.ingress.status import grpc_status

if TYPE_CHECKING:
    from kernels.transport import Call, Transport

log = logging.getLogger(__name__)

_CANCELLED, _DEADLINE_EXCEEDED = 1, 4


class OtherCalls:
    """Its methods belong to the listener's thread; what waits does so on an event loop of its own."""

    def __init__(self, transport: Transport, methods: GrpcMethods, ledger: Ledger) -> None:
        self._transport = transport
        self._methods = methods
        self._ledger = ledger
        self._running: dict[int, AsyncWork | AsyncStream] = {}
        self._ended: list[_Ended] = []
        self._loop = AsyncLoop("listener-grpc-async")

    def start(self) -> None:
        """Before the first call."""
        self._loop.start()

    def stop(self) -> None:
        """Ends what still runs."""
        self._loop.stop()

    def answer(
        self, call: Call, path: str, payload: bytes, context: RequestContext, error: HeadroomError | None
    ) -> None:
        """A direct method, or the `error` that stands in its way."""
        self._ledger.opened(1)
        body: bytes | Awaitable[bytes] = b""
        if error is None:
            try:
                body = self._methods.direct[path](payload, context)
            except HeadroomError as known:
                error = known
            except Exception:
                log.exception("method failed", extra={"request_id": context.request_id})
                error = Internal()
        if isinstance(body, bytes):
            return self._ended.append(_Ended(call, path, len(payload), body, context, error))

        def done(body: bytes | None, error: HeadroomError | None) -> None:
            self._running.pop(call.id, None)
            self._reply([_Ended(call, path, len(payload), body, context, error)])

        work = self._running[call.id] = AsyncWork(body, context, done)
        return work.start(self._loop)

    def open_stream(self, call: Call, path: str, context: RequestContext, error: HeadroomError | None) -> None:
        """A stream, or the `error` that stands in its way."""
        self._ledger.opened(1)
        if error is not None:
            return self._ended.append(_Ended(call, path, 0, None, context, error))

        def done(body: bytes | None, error: HeadroomError | None) -> None:
            self._running.pop(call.id, None)
            self._reply([_Ended(call, path, 0, body, context, error)])

        stream = self._running[call.id] = AsyncStream(call, self._transport, self._methods.streams[path], context, done)
        return stream.start(self._loop)

    def on_event(self, call: Call, kind: int, payload: bytes) -> None:
        """What a stream has received, or that it may send again."""
        stream = self._running.get(call.id)
        if not isinstance(stream, AsyncStream):
            return
        if kind == EventKind.MESSAGE:
            stream.on_message(payload)
        elif kind == EventKind.HALF_CLOSED:
            stream.on_half_closed()
        elif kind == EventKind.WRITABLE:
            stream.on_writable()

    def end(self, call: Call, *, is_cancelled: bool) -> None:
        """The client has left, or the deadline has passed."""
        running = self._running.get(call.id)
        if running is not None:
            running.cancel(is_cancelled=is_cancelled)

    def flush(self) -> None:
        """Sends the answers of one turn together."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._reply(ended)

    def _reply(self, ended: Sequence[_Ended]) -> None:
        """From any thread."""
        lost = self._transport.reply([one.answer() for one in ended])
        gone = frozenset(lost or ())
        now_ns = time.monotonic_ns()
        for i, one in enumerate(ended):
            code, kind = one.outcome(is_lost=i in gone)
            label, bytes_out = one.path.rpartition("/")[2], 0 if one.body is None else len(one.body)
            self._ledger.record_other(one.context, label, code, one.bytes_in, bytes_out, now_ns, kind)


class _Ended(NamedTuple):
    """A call and its answer."""

    call: Call
    path: str
    bytes_in: int
    body: bytes | None
    context: RequestContext
    error: HeadroomError | None

    def answer(self) -> tuple[Call, int, bytes | None, str, Trailing]:
        """As the transport takes it."""
        trailing: Trailing = (("x-request-id", self.context.request_id),)
        if self.error is None:
            return self.call, 0, self.body, "", trailing
        return self.call, grpc_status(self.error), None, self.error.message, trailing + error_trailing(self.error)

    def outcome(self, *, is_lost: bool) -> tuple[int, str | None]:
        """Status code and kind of error; of a call that had ended before it was answered, why it had."""
        if is_lost:
            is_cancelled = self.context.cancelled
            return (_CANCELLED, "cancelled") if is_cancelled else (_DEADLINE_EXCEEDED, "deadline_exceeded")
        return (0, None) if self.error is None else (grpc_status(self.error), self.error.kind)
