"""The HTTP listener: one uvloop thread that reads requests, pushes the hot ones into collectors and writes answers.

Hot routes (`Route`) never see ASGI; everything else goes to an ASGI application. Answers of a batch come back in one
`call_soon_threadsafe`. Deadlines are kept by a timing wheel, so a 504 leaves on time while its batch still runs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import orjson

from serve.batching.arrival import Answer, Arrival, Route
from serve.budgets.deadline import NS_PER_MS
from serve.context import RequestIds
from serve.errors import Cancelled, HeadroomError, InvalidInput, Overloaded
from serve.ingress.admission import Admission
from serve.ingress.gate import Gate
from serve.ingress.http_asgi import AsgiApp, AsgiBridge
from serve.ingress.http_connection import HttpConnection
from serve.ingress.http_entry import Routes, Understood, context_of, limit_by_body, understand
from serve.ingress.http_error import RenderedError
from serve.ingress.http_request import HeadMemory, HttpRequest, head, header_lines
from serve.ingress.ledger import Ledger, Settled
from serve.ingress.status import error_body, http_status
from serve.settings import Limits

log = logging.getLogger(__name__)

_SWEEP_S = 0.5
_DRAIN_IDLE_NS = 1_000_000_000
_BUSY_NS = 100_000_000
"""A loop that has read nothing for this long was asleep, and woke for what it reads now."""

Rendered = tuple[Answer, int, bytes, bool]


class HttpListener:
    """Implements `Listener` on sockets that already listen. `routes` may be replaced while it serves."""

    def __init__(
        self,
        name: str,
        sockets: Sequence[socket.socket],
        routes: Routes,
        app: AsgiApp,
        limits: Limits,
        admission: Admission,
        ledger: Ledger,
    ) -> None:
        self.limits = limits
        self.is_draining = False
        self.heads = HeadMemory()
        self.routes = routes
        self._name = name
        self._sockets = sockets
        self._admission = admission
        self._ledger = ledger
        self._ids = RequestIds()
        self._connections: set[HttpConnection] = set()
        self._num_in_flight = 0
        self._rendered_error = RenderedError.of(Cancelled(""), keep_alive=True)
        self._turn_ns: int | None = None
        self._last_turn_ns = 0
        self._unseen_ns = 0
        self._num_read_in_turn = 0
        self._servers: list[asyncio.Server] = []
        self._bridge = AsgiBridge(app, self._finish_other)
        self._loop: asyncio.AbstractEventLoop
        self._gate: Gate
        self._thread = threading.Thread(target=self._serve, name=f"listener-{name}", daemon=True)
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
        """Stops accepting; answers carry `Connection: close`; returns when no connection is left or at the deadline."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._drain(deadline_ns), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def reply(self, answers: Sequence[Answer]) -> None:
        """Renders in the caller's thread, writes in the loop's: at most one wake-up per batch."""
        rendered = [self._render(answer) for answer in answers]
        if threading.get_ident() == self._thread.ident:
            self._write(rendered)
            return
        with suppress(RuntimeError):  # the loop has ended: nobody waits for these any more
            self._loop.call_soon_threadsafe(self._write, rendered)

    # Thread

    def _serve(self) -> None:
        import uvloop

        self._loop = uvloop.new_event_loop()
        self._gate = Gate(self._loop, self._answer, may_run_here=True)
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
        for sock in self._sockets:
            server = await self._loop.create_server(partial(HttpConnection, self), sock=sock, backlog=4096)
            self._servers.append(server)
        self._loop.call_later(_SWEEP_S, self._sweep)

    async def _drain(self, deadline_ns: int) -> None:
        """An idle connection stays open for a while: closing it at once would race the request it may be sending."""
        self.is_draining = True
        for server in self._servers:
            server.close()
        while self._connections and time.monotonic_ns() < deadline_ns:
            await asyncio.sleep(0.01)
            for connection in [c for c in self._connections if c.is_idle_since(time.monotonic_ns() - _DRAIN_IDLE_NS)]:
                connection.transport.close()
        for connection in list(self._connections):
            connection.transport.abort()

    # What connections call.

    def on_opened(self, connection: HttpConnection) -> bool:
        """Takes a connection in, or answers that there are too many."""
        self._connections.add(connection)
        self._ledger.metrics.set_connections(self._name, len(self._connections))
        if len(self._connections) <= self.limits.max_connections:
            return True
        error = Overloaded(
            f"{self.limits.max_connections} connections are open, which are allowed; retry later", reason="connections"
        )
        self.on_bad_request(connection, error, http_status(error), "connections")
        return False

    def on_closed(self, connection: HttpConnection) -> None:
        """Forgets a connection; what it waited for is cancelled."""
        self._connections.discard(connection)
        self._ledger.metrics.set_connections(self._name, len(self._connections))
        self._bridge.cancel(connection)

    def on_bad_request(self, connection: HttpConnection, error: HeadroomError, status: int, reason: str) -> None:
        """Answers what never became a request and closes the connection."""
        self._ledger.metrics.count_rejections(self._name, reason)
        body = orjson.dumps(error_body(error, self._ids.make()))
        retry = "retry-after: 1\r\n" if isinstance(error, Overloaded) else ""
        connection.transport.write(head(status, "application/json", len(body), retry, keep_alive=False) + body)
        connection.transport.close()

    def arrived_ns(self, connection: HttpConnection) -> int:
        """When a request that was just read had arrived, so that its deadline counts what it waited for this thread.

        That is no later than when this turn of the loop began to read. Where that was late already, as under overload,
        the kernel is asked.
        """
        if self._turn_ns is None:
            now_ns = time.monotonic_ns()
            is_busy = now_ns - self._last_turn_ns < _BUSY_NS
            self._turn_ns = self._last_turn_ns = now_ns
            self._loop.call_soon(self._end_turn)
            self._unseen_ns = connection.unseen_ms() * NS_PER_MS if is_busy else 0
            self._num_read_in_turn = 1
        elif self._unseen_ns:
            # Those that have waited longest are read first: one in eight is asked, and answers for the next seven.
            if self._num_read_in_turn % 8 == 0:
                self._unseen_ns = min(self._unseen_ns, connection.unseen_ms() * NS_PER_MS)
            self._num_read_in_turn += 1
        return self._turn_ns - self._unseen_ns

    def _end_turn(self) -> None:
        self._turn_ns = None

    def on_request(self, request: HttpRequest) -> None:
        """The way in: context, admission, then the route's collector or the ASGI application."""
        self._num_in_flight += 1
        understood: Understood | None = request.head.understood
        if understood is None or understood.routes is not self.routes:
            understood = request.head.understood = understand(request.head, self.routes, self._admission)
        route = understood.route
        context = request.context = context_of(request, understood, self._ids)
        error = understood.error or limit_by_body(request, route, context)
        if error is not None:
            self._answer_now(request, route, error)
        elif self._num_in_flight > self.limits.max_concurrent_requests:
            self._ledger.metrics.count_rejections(self._name, "concurrency")
            text = f"{self.limits.max_concurrent_requests} requests are in flight, which are allowed; retry later"
            self._answer_now(request, route, Overloaded(text, reason="concurrency"))
        elif route is None:
            self._ledger.opened(1)
            self._bridge.handle(request)
        else:
            self._ledger.opened(1)
            self._gate.enter(Arrival(context, request, route, route.codec.count_items(request), self, request))

    # Answers

    def _answer(self, answers: Sequence[Answer]) -> None:
        self._write([self._render(answer) for answer in answers])

    def _render(self, answer: Answer) -> Rendered:
        arrival = answer.arrival
        context = arrival.context
        keep_alive = not arrival.token.connection.must_close
        encoded = answer.encoded
        if encoded is None:
            assert answer.error is not None
            error = self._rendered_error
            if error.error is not answer.error or error.keep_alive != keep_alive:
                error = self._rendered_error = RenderedError.of(answer.error, keep_alive=keep_alive)
            return answer, error.status, error.bytes_for(context.request_id, context.traceparent), keep_alive
        lines = f"x-request-id: {context.request_id}\r\n"
        if context.traceparent is not None:
            lines += f"traceparent: {context.traceparent}\r\n"
        lines += f"server-timing: queue;dur={answer.queue_ns / 1e6:.3f}{answer.server_timing}\r\n"
        if encoded.headers:
            lines += header_lines(encoded.headers)
        data = head(encoded.status, encoded.content_type, len(encoded.body), lines, keep_alive=keep_alive)
        return answer, encoded.status, data + encoded.body, keep_alive

    def _write(self, rendered: Sequence[Rendered]) -> None:
        """In the loop's thread: writes what is still waited for. Deadline, departure and result meet here."""
        settled = []
        for answer, status, data, keep_alive in rendered:
            arrival = answer.arrival
            if arrival.is_answered:
                continue
            arrival.is_answered = True
            request: HttpRequest = arrival.token
            arrival.payload = None
            self._num_in_flight -= 1
            code = str(status)
            if arrival.context.cancelled:
                code = "499"
            else:
                request.connection.finish(request, data, keep_alive=keep_alive)
            settled.append(Settled(arrival, code, answer.error, answer.degraded, len(request.body), len(data)))
        self._ledger.settle(settled, time.monotonic_ns())

    def _answer_now(self, request: HttpRequest, route: Route | None, error: HeadroomError) -> None:
        """An error before anything was pushed."""
        assert request.context is not None
        self._ledger.opened(1)
        if route is not None:
            arrival = Arrival(request.context, request, route, 1, self, request)
            self._loop.call_soon(self._write, [self._render(Answer(arrival, None, error))])
            return
        keep_alive = not request.connection.must_close
        rendered = RenderedError.of(error, keep_alive=keep_alive)
        status, data = rendered.status, rendered.bytes_for(request.context.request_id, request.context.traceparent)
        if request.head.method == b"HEAD":
            data = data[: data.index(b"\r\n\r\n") + 4]
        self._loop.call_soon(partial(request.connection.finish, request, data, keep_alive=keep_alive))
        self._finish_other(request, "refused", status, len(data), error.kind)

    def _finish_other(self, request: HttpRequest, label: str, status: int, bytes_out: int, kind: str | None) -> None:
        assert request.context is not None
        self._num_in_flight -= 1
        self._ledger.record_other(
            request.context, label, status, len(request.body), bytes_out, time.monotonic_ns(), kind
        )

    # Housekeeping

    def _sweep(self) -> None:
        """Closes connections that are over one of the limits on time."""
        now_ns = time.monotonic_ns()
        for connection in list(self._connections):
            reason = connection.stalled(now_ns)
            if reason is not None:
                self._close_stalled(connection, reason)
        self._loop.call_later(_SWEEP_S, self._sweep)

    def _close_stalled(self, connection: HttpConnection, reason: str) -> None:
        connection.is_closing = True
        if reason in ("header_timeout", "body_timeout"):
            error = InvalidInput(f"the request did not arrive in time ({reason.replace('_', ' ')})")
            self.on_bad_request(connection, error, 408, reason)
        elif reason == "write_timeout":
            self._ledger.metrics.count_rejections(self._name, reason)
            connection.transport.abort()
        else:
            connection.transport.close()
