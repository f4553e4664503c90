"""The gRPC listener on the native transport: C++ threads own sockets, HTTP/2 and deadlines; one Python thread takes all
that has arrived, and runs short batches itself.

Hot: what is here is paid per request (see benchmarks/transport.py). Calls that expire, are cancelled or find their queue
full before they are taken cost Python nothing but a count.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.transport import EventKind
from serve.batching.arrival import Answer, Arrival
from serve.budgets.deadline import Deadline, limited
from serve.budgets.wheel import TimingWheel
from serve.context import RequestContext, RequestIds
from serve.errors import Cancelled, DeadlineExceeded, HeadroomError
from serve.ingress.gate import late_answers
from serve.ingress.grpc_metadata import answer_trailing, call_context, timeout_ms
from serve.ingress.grpc_methods import GrpcMethods, InferRoutes, ItemStream, ModelKey
from serve.ingress.grpc_native_other import OtherCalls
from serve.ingress.grpc_native_stream import ScoredStream
from serve.ingress.grpc_native_table import MethodTable, transport_limits, unloaded
from serve.ingress.ledger import Ledger, Settled
from serve.ingress.status import grpc_status
from serve.settings import GrpcTls, Limits

if TYPE_CHECKING:
    from kernels.transport import Call, Request
    from kernels.transport._transport import Answer as NativeAnswer
    from kernels.transport._transport import GoodAnswer

log = logging.getLogger(__name__)

_CANCELLED = 1
_QUIET_S = 0.25
_TICK_S = 0.001
_BUSY_S = 0.002
"""How soon a queue is looked at again whose batches run on another thread."""
_NEVER_NS = 1 << 62
_TALLY_EVERY_NS = 100_000_000


class NativeGrpcListener:
    """Implements `Listener`. `listening` stays the caller's, and must outlive this."""

    def __init__(
        self,
        listening: socket.socket,
        methods: GrpcMethods,
        limits: Limits,
        ledger: Ledger,
        *,
        num_threads: int,
        tls: GrpcTls | None = None,
    ) -> None:
        from kernels.transport import Transport

        self._methods = methods
        self._ledger = ledger
        self._ids = RequestIds()
        self._tls = tls
        self._tls_stamp = None if tls is None else _stamp(tls)
        self._table = MethodTable(methods)
        self._limits = limits
        self._transport = Transport(
            listener=listening.fileno(), num_threads=num_threads, limits=transport_limits(limits),
            tls=None if tls is None else tls.files,
        )  # fmt: skip
        self._serve_table()
        self._open: dict[int, Arrival] = {}
        self._streams: dict[int, ScoredStream] = {}
        self._others = OtherCalls(self._transport, methods, ledger)
        self._wheel: TimingWheel[Arrival] = TimingWheel(time.monotonic_ns())  # of messages of streams
        self._to_dispatch: set[int] = set()
        self._tallied_ns = 0
        self._num_refused = 0
        """Connections."""
        self._is_stopping = False
        self._thread = threading.Thread(target=self._serve, name="listener-grpc", daemon=True)

    # Listener

    def start(self) -> None:
        """Begins to accept."""
        self._others.start()
        self._thread.start()
        self._transport.start()

    def drain(self, deadline_ns: int) -> None:
        """Sends GOAWAY, lets calls finish until the deadline."""
        self._transport.drain(deadline_ns)
        self._is_stopping = True
        self._transport.wake()
        self._thread.join(timeout=5)
        self._transport.stop()
        self._others.stop()
        self._count_unseen()

    def change_models(self, models: Mapping[ModelKey, InferRoutes]) -> None:
        """What `ModelInfer` serves from now on; from one thread at a time."""
        self._methods.models = models
        self._table.set_models(models)
        self._serve_table()

    def _serve_table(self) -> None:
        table = self._table
        self._transport.serve(table.native_routes(), table.native_methods(self._limits), table.native_models())

    def check(self) -> None:
        """Counts connections; greets new ones with certificates that were replaced, unless those are wrong."""
        self._count_connections()
        if self._tls is None or (stamp := _stamp(self._tls)) == self._tls_stamp:
            return
        self._tls_stamp = stamp
        try:
            self._transport.load_tls(self._tls.files)
            log.info("the gRPC port's certificate was replaced")
        except RuntimeError as error:
            log.error("the gRPC port keeps its former certificate: %s", error)

    def reply(self, answers: Sequence[Answer]) -> None:
        """One call into the transport per batch, and one more where some have an error. From any thread."""
        good: list[GoodAnswer] = []
        other: list[NativeAnswer] = []
        were_good: list[Answer] = []
        were_other: list[Answer] = []
        for answer in answers:
            arrival = answer.arrival
            token, context, encoded = arrival.token, arrival.context, answer.encoded
            if arrival.is_answered:
                continue
            if isinstance(token, ScoredStream):
                if token.deliver(answer):
                    arrival.is_answered = True
                    self._settle([answer])
            elif encoded is None:
                error = answer.error
                assert error is not None
                other.append((token, grpc_status(error), None, error.message, answer_trailing(answer)))
                were_other.append(answer)
            elif context.traceparent is not None or answer.server_timing != answers[0].server_timing:
                other.append((token, 0, encoded.body, "", answer_trailing(answer)))
                were_other.append(answer)
            else:
                good.append((token, encoded.body, context.request_id, answer.queue_ns))
                were_good.append(answer)
        if good:
            self._replied(were_good, self._transport.reply_ok(good, answers[0].server_timing))
        if other:
            self._replied(were_other, self._transport.reply(other))

    def _replied(self, answers: list[Answer], lost: list[int] | None) -> None:
        """Those that had ended before are not ours to settle: the transport says so in an event of its own."""
        if lost is not None:
            gone = frozenset(lost)
            answers = [answer for i, answer in enumerate(answers) if i not in gone]
        for answer in answers:
            arrival = answer.arrival
            arrival.is_answered = True
            self._open.pop(arrival.token.id, None)
        self._settle(answers)

    # Thread

    def _serve(self) -> None:
        while not self._is_stopping:
            try:
                self._turn()
            except Exception:
                log.exception("a turn of the gRPC listener failed")

    def _turn(self) -> None:
        requests, events = self._transport.take(self._patience_s())
        if requests:
            self._enter(requests)
        for call, kind, payload, code in events:
            self._on_event(call, kind, payload, code)
        self._others.flush()
        if self._to_dispatch:
            for index in tuple(self._to_dispatch):
                self._to_dispatch.discard(index)
                if self._table.entrances[index].dispatch(partial(self._dispatch_later, index)):
                    self._to_dispatch.add(index)
        self._table.plan(self._transport)
        now_ns = time.monotonic_ns()
        if self._wheel.num_entries:
            late = [arrival for arrival in self._wheel.advance(now_ns) if not arrival.is_answered]
            self.reply(late_answers(late))
        if now_ns - self._tallied_ns > _TALLY_EVERY_NS:
            self._tallied_ns = now_ns
            self._count_unseen()

    def _patience_s(self) -> float:
        if self._to_dispatch:
            return 0.0
        if self._wheel.num_entries:
            return _TICK_S
        return _BUSY_S if self._table.has_closed_room else _QUIET_S

    def _dispatch_later(self, index: int) -> None:
        """From any thread."""
        self._to_dispatch.add(index)
        self._transport.wake()

    def _enter(self, requests: Sequence[Request]) -> None:
        """Requests of one `take`, each group pushed at once."""
        pushed: dict[int, list[Arrival]] = {}
        wrong: list[Answer] = []
        routes, make_id, opened = self._table.routes, self._ids.make, self._open
        for call, payload, index, arrived_ns, deadline_ns, has_metadata in requests:
            route = routes[index]
            if route is None:
                self._enter_late(call, payload, index)
                continue
            error: HeadroomError | None = None
            if has_metadata:
                context, error = self._context(call)
            else:
                context = RequestContext(make_id(), Deadline(deadline_ns), arrived_ns)
            codec = route.codec
            arrival = Arrival(context, payload, route, codec.count_items(payload), self, call)
            opened[call.id] = arrival
            if error is None:
                error = self._limit(arrival, codec.timeout_us)
            if error is None:
                pushed.setdefault(index, []).append(arrival)
            else:
                wrong.append(Answer(arrival, None, error))
        self._ledger.opened(sum(map(len, pushed.values())) + len(wrong))
        if wrong:
            self.reply(wrong)
        now_ns = time.monotonic_ns()
        for index, arrivals in pushed.items():
            self._push(self._table.group_of_route[index], arrivals, now_ns)

    def _push_alone(self, arrival: Arrival, now_ns: int) -> None:
        group = self._table.group_of(arrival.route)
        if group is None:
            return self.reply([Answer(arrival, None, unloaded(arrival.route))])
        return self._push(group, [arrival], now_ns)

    def _push(self, group: int, arrivals: list[Arrival], now_ns: int) -> None:
        refused = self._table.entrances[group].push(arrivals, now_ns)
        if refused:
            self.reply([Answer(arrival, None, error) for arrival, error in refused])
        self._to_dispatch.add(group)

    def _limit(self, arrival: Arrival, timeout_us: Any) -> HeadroomError | None:
        """Heeds a time limit inside the message."""
        try:
            allowed_us = timeout_us(arrival.payload)
        except HeadroomError as error:
            return error
        if allowed_us:
            self._shorten(arrival, allowed_us)
        return None

    def _shorten(self, arrival: Arrival, allowed_us: int) -> None:
        context = arrival.context
        context.deadline = limited(context.deadline, context.arrived_ns, allowed_us)
        self._transport.limit(arrival.token, context.deadline.at_ns)

    def _context(self, call: Call) -> tuple[RequestContext, HeadroomError | None]:
        metadata = dict(call.metadata)
        _, error = timeout_ms(metadata)  # heeded by the transport, where it is right
        return call_context(metadata, self._ids, call.arrived_ns, Deadline(call.deadline_ns or _NEVER_NS)), error

    def _enter_late(self, call: Call, payload: bytes, index: int) -> None:
        """A call that no batch answers, or one whose route only Python can see."""
        context, error = self._context(call)
        path = self._table.paths[index]
        if path in self._methods.direct:
            return self._others.answer(call, path, payload, context, error)
        try:
            route = self._methods.route(path, payload)
        except HeadroomError as no_route:
            return self._others.answer(call, path, payload, context, no_route)
        self._ledger.opened(1)
        arrival = Arrival(context, payload, route, route.codec.count_items(payload), self, call)
        self._open[call.id] = arrival
        self._shorten(arrival, int(route.budget_ms * 1000))
        error = error or self._limit(arrival, route.codec.timeout_us)
        if error is not None:
            return self.reply([Answer(arrival, None, error)])
        return self._push_alone(arrival, time.monotonic_ns())

    # Streams and ends

    def _on_event(self, call: Call, kind: int, payload: bytes, code: int) -> None:
        if kind == EventKind.OPENED:
            self._open_stream(call)
        elif kind == EventKind.ENDED:
            self._end(call, code)
        elif (stream := self._streams.get(call.id)) is None:
            self._others.on_event(call, kind, payload)
        elif kind == EventKind.MESSAGE:
            stream.on_message(payload)
        elif kind == EventKind.HALF_CLOSED:
            stream.on_half_closed()
        elif kind == EventKind.WRITABLE:
            stream.on_writable()

    def _open_stream(self, call: Call) -> None:
        context, error = self._context(call)
        path = self._table.paths[call.route]
        kind = self._methods.item_stream(path)
        if kind is None or error is not None:
            return self._others.open_stream(call, path, context, error)
        header_ms, _ = timeout_ms(dict(call.metadata))
        admit = partial(self._admit_message, kind, header_ms, context)
        self._streams[call.id] = ScoredStream(call, self._transport, kind, admit, self._close_stream)
        return None

    def _admit_message(
        self, kind: ItemStream, header_ms: float | None, opened: RequestContext, stream: ScoredStream, payload: bytes
    ) -> None:
        """A message of a stream, an arrival of its own: with a deadline of its own, within the call's. Raises
        HeadroomError for one that goes nowhere.
        """
        now_ns = time.monotonic_ns()
        try:
            route = kind.route(payload)
            timeout_us = route.codec.timeout_us(payload)
        except HeadroomError as error:
            self._ledger.opened(1)
            code = grpc_status(error)
            self._ledger.record_other(opened, "no_route", code, len(payload), 0, now_ns, error.kind)
            raise
        budget_ms = min(route.budget_ms, header_ms or route.budget_ms)
        at_ns = min(now_ns + int(budget_ms * 1e6), opened.deadline.at_ns)
        deadline = limited(Deadline(at_ns), now_ns, timeout_us)
        context = RequestContext(opened.request_id, deadline, now_ns, opened.traceparent)
        arrival = Arrival(context, payload, route, route.codec.count_items(payload), self, stream)
        self._ledger.opened(1)
        stream.expect(arrival)
        self._wheel.add(arrival.context.deadline.at_ns, arrival)
        self._push_alone(arrival, now_ns)

    def _close_stream(self, call: Call) -> None:
        self._streams.pop(call.id, None)

    def _end(self, call: Call, code: int) -> None:
        """The deadline has passed, or the client has left; it has been answered."""
        arrival = self._open.pop(call.id, None)
        error = _end_error(code)
        if arrival is not None:
            arrival.is_answered = True
            arrival.context.cancelled = code == _CANCELLED
            self._settle([Answer(arrival, None, error)])
        elif (stream := self._streams.pop(call.id, None)) is None:
            self._others.end(call, is_cancelled=code == _CANCELLED)
        else:
            for arrival in stream.abandon():
                arrival.is_answered = arrival.context.cancelled = True
                self._settle([Answer(arrival, None, error)])

    # Accounts

    def _settle(self, answers: Sequence[Answer]) -> None:
        self._ledger.settle([_settled(answer) for answer in answers], time.monotonic_ns())

    def _count_connections(self) -> None:
        now = self._transport.statistics()
        metrics, refused = self._ledger.metrics, now["refused_connections"]
        metrics.set_connections("grpc", now["connections"])
        metrics.count_rejections("grpc", "connections", refused - self._num_refused)
        self._num_refused = refused

    def _count_unseen(self) -> None:
        """What the transport refused, or what ended in its queues."""
        for index, tally in self._transport.tallies():
            self._table.count_unseen(index, tally, self._ledger)


def _stamp(tls: GrpcTls) -> tuple[int, ...]:
    """Changes with the files; a file that is not there has none."""
    return tuple(Path(name).stat().st_mtime_ns if Path(name).exists() else 0 for name in tls.files if name)


def _settled(answer: Answer) -> Settled:
    arrival, error, encoded = answer.arrival, answer.error, answer.encoded
    code = "0" if error is None else str(grpc_status(error))
    size_out = 0 if encoded is None else len(encoded.body)
    settled = Settled(arrival, code, error, answer.degraded, len(arrival.payload), size_out)
    arrival.payload = b""
    return settled


def _end_error(code: int) -> HeadroomError:
    """For the accounts; the client has been told by the transport."""
    return Cancelled("the client left") if code == _CANCELLED else DeadlineExceeded("no answer within the time allowed")
