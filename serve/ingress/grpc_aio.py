"""The gRPC listener on grpc.aio, where the native transport has not been built: the same methods, several times slower.

grpc.aio cannot adopt a listening socket: it binds beside the holder's reservation with SO_REUSEPORT.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from serve.batching.arrival import Answer, Arrival, Route
from serve.budgets.deadline import OTHER_BUDGET_MS, limited, tightest
from serve.context import RequestContext, RequestIds
from serve.errors import HeadroomError, Internal, Overloaded
from serve.ingress.gate import Gate
from serve.ingress.grpc_aio_stream import ScoreStream
from serve.ingress.grpc_metadata import answer_trailing, call_context, error_trailing, timeout_ms
from serve.ingress.grpc_methods import GrpcMethods, InferRoutes, ItemStream, ModelKey, StreamMethod
from serve.ingress.ledger import Ledger, Settled
from serve.ingress.status import grpc_status
from serve.settings import GrpcTls, Limits

log = logging.getLogger(__name__)

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class AioGrpcListener:
    """Implements `Listener`."""

    def __init__(
        self, address: str, methods: GrpcMethods, limits: Limits, ledger: Ledger, *, tls: GrpcTls | None = None
    ) -> None:
        self.limits = limits
        self.methods = methods
        self._address = address
        self._ledger = ledger
        self._tls = tls
        self._ids = RequestIds()
        self._num_in_flight = 0
        self._loop: asyncio.AbstractEventLoop
        self._gate: Gate
        self._server: Any = None
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

    def change_models(self, models: Mapping[ModelKey, InferRoutes]) -> None:
        """What `ModelInfer` serves from now on."""
        self.methods.models = models

    def check(self) -> None:
        """Certificates are read anew by each connection."""

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
        self._server = aio.server(options=_options(self.limits))
        self._server.add_generic_rpc_handlers((_Methods(self),))
        if self._tls is None:
            self._server.add_insecure_port(self._address)
        else:
            self._server.add_secure_port(self._address, _credentials(self._tls))
        await self._server.start()

    async def _stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)

    # Calls

    async def answer_unary(self, path: str, payload: bytes, call: Any) -> bytes:
        """A call of a pipeline or model: waits for its batch."""
        try:
            route = self.methods.route(path, payload)
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
        trailing = answer_trailing(answer)
        if answer.encoded is None:
            assert answer.error is not None
            await call.abort(_STATUS[grpc_status(answer.error)], answer.error.message, trailing)
            raise AssertionError("abort raises")
        call.set_trailing_metadata(trailing)
        return answer.encoded.body

    async def answer_items(self, kind: ItemStream, messages: AsyncIterator[bytes], call: Any) -> None:
        """A bidirectional stream: each message is an arrival of its own."""
        _, error = self._context(call, OTHER_BUDGET_MS)
        if error is not None:
            await self._refuse(call, b"", error)
        stream = ScoreStream(kind, call, self.limits.max_streams_per_connection)
        await stream.run(messages, partial(self._admit_item, kind))

    def _admit_item(self, kind: ItemStream, payload: bytes, call: Any, token: Any) -> Arrival:
        try:
            route = kind.route(payload)
        except HeadroomError as error:
            self._ledger.opened(1)
            context, _ = self._context(call, OTHER_BUDGET_MS)
            now_ns, code = time.monotonic_ns(), grpc_status(error)
            self._ledger.record_other(context, "no_route", code, len(payload), 0, now_ns, error.kind)
            raise
        return self.admit(route, payload, call, token)

    async def answer_stream(self, path: str, messages: AsyncIterator[bytes], call: Any) -> None:
        """A stream of its own kind."""
        self._ledger.opened(1)
        context, error = self._context(call, OTHER_BUDGET_MS)
        method: StreamMethod = self.methods.streams[path]
        if error is None:
            try:
                async with aclosing(method(messages, context)) as answers:
                    async for message in answers:
                        await call.write(message)
            except HeadroomError as known:
                error = known
            except asyncio.CancelledError:
                label = path.rpartition("/")[2]
                self._ledger.record_other(context, label, 1, 0, 0, time.monotonic_ns(), "cancelled")
                raise
            except Exception:
                log.exception("stream failed", extra={"request_id": context.request_id})
                error = Internal()
        await self._end_direct(call, path.rpartition("/")[2], b"", b"", context, error)

    async def answer_direct(self, path: str, payload: bytes, call: Any) -> bytes:
        """A call that no pipeline answers."""
        self._ledger.opened(1)
        context, error = self._context(call, self.methods.budget_ms(path))
        body = b""
        if error is None:
            try:
                answer = self.methods.direct[path](payload, context)
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
        context, _ = self._context(call, OTHER_BUDGET_MS)
        await self._end_direct(call, "no_route", payload, b"", context, error)

    async def _end_direct(
        self, call: Any, label: str, payload: bytes, body: bytes, context: RequestContext, error: HeadroomError | None
    ) -> None:
        code = 0 if error is None else grpc_status(error)
        kind = None if error is None else error.kind
        self._ledger.record_other(context, label, code, len(payload), len(body), time.monotonic_ns(), kind)
        request_id = (("x-request-id", context.request_id),)
        if error is not None:
            await call.abort(_STATUS[code], error.message, request_id + error_trailing(error))
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
        header_ms, error = timeout_ms(metadata)
        deadline = tightest(arrived_ns, budget_ms, header_ms=header_ms, grpc_remaining_s=call.time_remaining())
        return call_context(metadata, self._ids, arrived_ns, deadline), error

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

    def __init__(self, listener: AioGrpcListener) -> None:
        self._listener = listener
        self._batched = frozenset(listener.methods.batched_paths)

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        listener, methods = self._listener, self._listener.methods
        if path in self._batched:
            return grpc.unary_unary_rpc_method_handler(partial(listener.answer_unary, path))
        if path in methods.direct:
            return grpc.unary_unary_rpc_method_handler(partial(listener.answer_direct, path))
        if (kind := methods.item_stream(path)) is not None:
            return grpc.stream_stream_rpc_method_handler(partial(listener.answer_items, kind))
        if path in methods.streams:
            return grpc.stream_stream_rpc_method_handler(partial(listener.answer_stream, path))
        return None


def _credentials(tls: GrpcTls) -> Any:
    """Read anew for each connection: files that cannot be read leave the former ones in use."""

    def read() -> Any:
        try:
            pair = (Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())
            authority = Path(tls.client_ca).read_bytes() if tls.client_ca else None
        except OSError:
            log.exception("the certificate of the gRPC port cannot be read")
            return None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    first = read()
    if first is None:
        raise OSError(f"listen.grpc_tls: {tls.certificate} or {tls.key} cannot be read")
    return grpc.dynamic_ssl_server_credentials(first, read, require_client_authentication=bool(tls.client_ca))


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
