"""The ledger: every answer of a listener passes through here once, on its way into metrics and the access log.

Called per batch of answers, from whichever thread has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from threading import Lock

from msgspec import Struct

from serve.batching.arrival import Arrival, Route
from serve.context import RequestContext
from serve.errors import HeadroomError, Overloaded
from serve.observability.logs import AccessEntry, AccessLog
from serve.observability.metrics import Metrics

_DEADLINE_EXCEEDED = 4
"""gRPC's."""


class Settled(Struct, frozen=True, eq=False):
    """One request's end: what was answered, in the protocol's own status, and how large it was."""

    arrival: Arrival
    status: str
    error: HeadroomError | None
    degraded: tuple[str, ...]
    bytes_in: int
    bytes_out: int


class Ledger:
    """Of one protocol. Thread-safe."""

    def __init__(self, protocol: str, metrics: Metrics, access_log: AccessLog) -> None:
        self.protocol = protocol
        self.metrics = metrics
        self._access_log = access_log
        self._lock = Lock()
        self._in_flight = metrics.in_flight(protocol)

    def opened(self, num_requests: int) -> None:
        """Requests that came in."""
        with self._lock:
            self._in_flight[0] += num_requests

    def settle(self, settled: Sequence[Settled], now_ns: int) -> None:
        """Requests that were answered at `now_ns`."""
        if not settled:
            return
        with self._lock:
            self._in_flight[0] -= len(settled)
        by_route: dict[int, tuple[Route, list[Settled]]] = {}
        for one in settled:
            route = one.arrival.route
            by_route.setdefault(id(route), (route, []))[1].append(one)
        for route, group in by_route.values():
            self._settle_route(route, group, now_ns)
        self._access_log.record([self._entry(one, now_ns) for one in settled])

    def _settle_route(self, route: Route, group: list[Settled], now_ns: int) -> None:
        for status, n in _counted([one.status for one in group]):
            self.metrics.count_requests(self.protocol, route.codec.endpoint, status, n)
        answered = [one for one in group if one.error is None]
        route.metrics.observe_requests([now_ns - one.arrival.context.arrived_ns for one in answered])
        late = sum([one.arrival.context.deadline.at_ns < now_ns for one in answered])
        degraded = sum([one.degraded != () for one in answered])
        reasons = [one.error.reason for one in group if isinstance(one.error, Overloaded)]
        missed = sum([one.error is not None and one.error.kind == "deadline_exceeded" for one in group])
        route.metrics.count_outcomes(
            met=len(answered) - late, missed=missed + late, degraded=degraded, refused=len(reasons)
        )
        for reason, n in _counted(reasons):
            route.metrics.count_refusals(reason, n)

    def _entry(self, one: Settled, now_ns: int) -> AccessEntry:
        arrival = one.arrival
        context = arrival.context
        return AccessEntry(
            context.request_id, self.protocol, arrival.route.codec.endpoint, one.status, now_ns - context.arrived_ns,
            arrival.items, one.bytes_in, one.bytes_out, context.traceparent, arrival.route.pipeline, one.degraded,
            context.tenant, None if one.error is None else one.error.kind,
        )  # fmt: skip

    def count_unseen(self, route: Route | None, endpoint: str, status: int, n: int, refused_for: str = "") -> None:
        """Requests that a transport ended before anybody saw them: counted, not logged."""
        if n == 0:
            return
        name = endpoint if route is None else route.codec.endpoint
        self.metrics.count_requests(self.protocol, name, str(status), n)
        if refused_for == "concurrency":
            self.metrics.count_rejections(self.protocol, refused_for, n)
        if route is None:
            return
        if refused_for:
            route.metrics.count_outcomes(met=0, missed=0, degraded=0, refused=n)
            route.metrics.count_refusals(refused_for, n)
        elif status == _DEADLINE_EXCEEDED:
            route.metrics.count_outcomes(met=0, missed=n, degraded=0, refused=0)

    def record_other(self, context: RequestContext, endpoint: str, status: int, bytes_in: int, bytes_out: int,
                     now_ns: int, kind: str | None) -> None:  # fmt: skip
        """A request that no pipeline answered: health, metadata, pages, an unknown route."""
        with self._lock:
            self._in_flight[0] -= 1
        self.metrics.count_requests(self.protocol, endpoint, str(status))
        entry = AccessEntry(
            context.request_id, self.protocol, endpoint, str(status), now_ns - context.arrived_ns, 1, bytes_in,
            bytes_out, context.traceparent, None, (), context.tenant, kind,
        )  # fmt: skip
        self._access_log.record([entry])


def _counted(names: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Each name and how often it occurs; mostly there is one, or none, and a Counter costs more."""
    if not names:
        return ()
    n = names.count(names[0])
    return ((names[0], n),) if n == len(names) else Counter(names).items()
