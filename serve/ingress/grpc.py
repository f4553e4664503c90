"""The gRPC listener on grpc.aio: one thread, methods as bytes in and bytes out, so that codecs parse whole batches.

It stands where the native transport goes, behind the same `Listener`. grpc.aio cannot adopt a listening socket: it
binds beside the holder's reservation with SO_REUSEPORT.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from grpc import aio

from serve.batching.arrival import Answer, Arrival, Route
from serve.budgets.deadline import limited, parse_timeout_ms, tightest
from serve.context import RequestContext, RequestIds, is_request_id, is_traceparent
from serve.errors import HeadroomError, Internal, InvalidInput, Overloaded
from serve.ingress.gate import Gate
from serve.ingress.grpc_stream import ScoreStream
from serve.ingress.ledger import Ledger, Settled
from serve.ingress.status import grpc_status
from serve.settings import Limits

log = logging.getLogger(__name__)

_OTHER_BUDGET_MS = 60_000.0
_STATUS = {code.value[0]: code for code in grpc.StatusCode}

DirectMethod = Callable[[bytes, RequestContext], bytes | Awaitable[bytes]]
"""Answered in the listener's thread: health, metadata, configuration. Raises HeadroomError."""
RouteOf = Callable[[bytes], Route]
"""The route of a message: a method that serves many models looks into it. Raises NotFound or NotReady."""
Trailing = tuple[tuple[str, str], ...]


class GrpcListener:
    """Implements `Listener`. `unary`, `streams` and `direct` are by full method path; they may grow while it serves."""

    def __init__(
        self,
        address: str,
        unary: Mapping[str, RouteOf],
        streams: Mapping[str, Route],
        direct: Mapping[str, DirectMethod],
        service_names: Sequence[str],
        limits: Limits,
        ledger: Ledger,
    ) -> None:
        self.limits = limits
        self.unary, self.streams, self.direct = unary, streams, direct
        self._address = address
        self._service_names = service_names
        self._ledger = ledger
        self._ids = RequestIds()
        self._num_in_flight = 0
        self._loop: asyncio.AbstractEventLoop
        self._gate: Gate
        self._server: Any = None
        self._health: Any = None
        self._thread = threading.Thread(target=self._serve, name="listener-grpc", daemon=True)
        self._has_started = threading.Event()
        self._failure: BaseException | None = None

    # Listener

    def start(self) -> None:
        """Begins to accept; raises what kept it from doing so."""
        self._thread.start()
        self._has_started.wait()
        if self._failure is not None:
            raise self._failure

    def drain(self, deadline_ns: int) -> None:
        """Sends GOAWAY, lets calls finish until the deadline."""
        if self._thread.is_alive():
            grace_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
            asyncio.run_coroutine_threadsafe(self._stop(grace_s), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def reply(self, answers: Sequence[Answer]) -> None:
        """One wake-up per batch."""
        with suppress(RuntimeError):  # the loop has ended: nobody waits for these any more
            self._loop.call_soon_threadsafe(self._resolve, answers)

    # Thread

    def _serve(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._gate = Gate(self._loop, self._resolve, may_run_here=False)
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._open())
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._has_started.set()
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _open(self) -> None:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        self._server = aio.server(options=_options(self.limits))
        self._server.add_generic_rpc_handlers((_Methods(self),))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)
        for name in ("", *self._service_names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.add_insecure_port(self._address)
        await self._server.start()

    async def _stop(self, grace_s: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    # Calls

    async def answer_unary(self, route_of: RouteOf, payload: bytes, call: Any) -> bytes:
        """A call of a pipeline or model: waits for its batch."""
        try:
            route = route_of(payload)
        except HeadroomError as error:
            await self._refuse(call, payload, error)
            raise AssertionError("abort raises") from None
        future: asyncio.Future[Answer] = self._loop.create_future()
        arrival = self.admit(route, payload, call, future)
        try:
            answer = await future
        except asyncio.CancelledError:
            arrival.context.cancelled = True
            raise
        trailing = _trailing(answer)
        if answer.encoded is None:
            assert answer.error is not None
            trailing += _error_metadata(answer.error)
            await call.abort(_STATUS[grpc_status(answer.error)], answer.error.message, trailing)
            raise AssertionError("abort raises")
        call.set_trailing_metadata(trailing)
        return answer.encoded.body

    async def answer_stream(self, route: Route, messages: AsyncIterator[bytes], call: Any) -> None:
        """A bidirectional stream: each message is an arrival of its own."""
        stream = ScoreStream(route, call, self.limits.max_streams_per_connection)
        await stream.run(messages, partial(self.admit, route))

    async def answer_direct(self, path: str, payload: bytes, call: Any) -> bytes:
        """A call that no pipeline answers."""
        self._ledger.opened(1)
        context, error = self._context(call, _OTHER_BUDGET_MS)
        body = b""
        if error is None:
            try:
                answer = self.direct[path](payload, context)
                body = answer if isinstance(answer, bytes) else await answer
            except HeadroomError as known:
                error = known
            except asyncio.CancelledError:
                label = path.rpartition("/")[2]
                self._ledger.record_other(context, label, 1, len(payload), 0, time.monotonic_ns(), "cancelled")
                raise
            except Exception:
                log.exception("method failed", extra={"request_id": context.request_id})
                error = Internal()
        await self._end_direct(call, path.rpartition("/")[2], payload, body, context, error)
        return body

    async def _refuse(self, call: Any, payload: bytes, error: HeadroomError) -> None:
        """A call that has no route."""
        self._ledger.opened(1)
        context, _ = self._context(call, _OTHER_BUDGET_MS)
        await self._end_direct(call, "no_route", payload, b"", context, error)

    async def _end_direct(
        self, call: Any, label: str, payload: bytes, body: bytes, context: RequestContext, error: HeadroomError | None
    ) -> None:
        code = 0 if error is None else grpc_status(error)
        kind = None if error is None else error.kind
        self._ledger.record_other(context, label, code, len(payload), len(body), time.monotonic_ns(), kind)
        request_id = (("x-request-id", context.request_id),)
        if error is not None:
            await call.abort(_STATUS[code], error.message, request_id + _error_metadata(error))
        call.set_trailing_metadata(request_id)

    def admit(self, route: Route, payload: bytes, call: Any, token: Any) -> Arrival:
        """Makes the arrival and pushes it with this turn's others; what may not come in is answered why."""
        context, error = self._context(call, route.budget_ms)
        if error is None:
            try:
                timeout_us = route.codec.timeout_us(payload)
                context.deadline = limited(context.deadline, context.arrived_ns, timeout_us)
            except HeadroomError as known:
                error = known
        arrival = Arrival(context, payload, route, route.codec.count_items(payload), self, token)
        self._ledger.opened(1)
        self._num_in_flight += 1
        if error is None and self._num_in_flight > self.limits.max_concurrent_requests:
            text = f"{self.limits.max_concurrent_requests} requests are in flight, which are allowed; retry later"
            error = Overloaded(text, reason="concurrency")
            self._ledger.metrics.count_rejections("grpc", "concurrency")
        if error is None:
            self._gate.enter(arrival)
        else:
            self._loop.call_soon(self._resolve, [Answer(arrival, None, error)])
        return arrival

    def _context(self, call: Any, budget_ms: float) -> tuple[RequestContext, HeadroomError | None]:
        """The call's context, and what is wrong with its metadata, if anything is."""
        arrived_ns = time.monotonic_ns()
        metadata = dict(call.invocation_metadata() or ())
        header = metadata.get("x-request-timeout-ms")
        header_ms, error = None, None
        try:
            header_ms = None if header is None else parse_timeout_ms(header)
        except HeadroomError as known:
            error = known
        deadline = tightest(arrived_ns, budget_ms, header_ms=header_ms, grpc_remaining_s=call.time_remaining())
        given_id = metadata.get("x-request-id")
        request_id = given_id if given_id is not None and is_request_id(given_id) else self._ids.make()
        traceparent = metadata.get("traceparent")
        if traceparent is not None and not is_traceparent(traceparent):
            traceparent = None
        return RequestContext(request_id, deadline, arrived_ns, traceparent), error

    def _resolve(self, answers: Sequence[Answer]) -> None:
        """In the loop's thread: hands over what is still waited for. Deadline, departure and result meet here."""
        settled = []
        for answer in answers:
            arrival = answer.arrival
            if arrival.is_answered:
                continue
            arrival.is_answered = True
            self._num_in_flight -= 1
            token = arrival.token
            if isinstance(token, ScoreStream):
                token.deliver(answer)
            elif not token.done():
                token.set_result(answer)
            status = 0 if answer.error is None else grpc_status(answer.error)
            code = "1" if arrival.context.cancelled else str(status)
            size_out = 0 if answer.encoded is None else len(answer.encoded.body)
            settled.append(Settled(arrival, code, answer.error, answer.degraded, len(arrival.payload), size_out))
            arrival.payload = b""
        self._ledger.settle(settled, time.monotonic_ns())


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Looks a method path up in the listener's tables."""

    def __init__(self, listener: GrpcListener) -> None:
        self._listener = listener

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        listener = self._listener
        if (route_of := listener.unary.get(path)) is not None:
            return grpc.unary_unary_rpc_method_handler(partial(listener.answer_unary, route_of))
        if path in listener.direct:
            return grpc.unary_unary_rpc_method_handler(partial(listener.answer_direct, path))
        if (route := listener.streams.get(path)) is not None:
            return grpc.stream_stream_rpc_method_handler(partial(listener.answer_stream, route))
        return None


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_connection_age_ms", int(limits.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(limits.drain_s * 1000)),
        ("grpc.server_handshake_timeout_ms", int(limits.header_timeout_s * 1000)),
    ]


def _trailing(answer: Answer) -> Trailing:
    context = answer.arrival.context
    trailing: Trailing = (
        ("x-request-id", context.request_id),
        ("server-timing", f"queue;dur={answer.queue_ns / 1e6:.3f}{answer.server_timing}"),
    )
    return trailing if context.traceparent is None else (*trailing, ("traceparent", context.traceparent))


def _error_metadata(error: HeadroomError) -> Trailing:
    trailing: Trailing = (("error-kind", error.kind),)
    if isinstance(error, InvalidInput) and error.field is not None:
        trailing += (("error-field", error.field),)
    if isinstance(error, Overloaded):
        trailing += (("error-reason", error.reason), ("retry-after-ms", str(error.retry_after_ms)))
    return trailing
