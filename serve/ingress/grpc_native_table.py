"""Methods as the native transport numbers them: routes with their queues and budgets, and how long each queue may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve.batching.arrival import Arrival, Entrance, Route
from serve.errors import NotReady, Overloaded
from serve.ingress.grpc_methods import GrpcMethods, InferRoutes, ModelKey
from serve.ingress.ledger import Ledger
from serve.ingress.wire.infer_codecs import MODEL_INFER, MODEL_STREAM_INFER
from serve.settings import Limits

if TYPE_CHECKING:
    from kernels.transport import Transport

_OTHER_GROUP = 0
_STREAM_CREDIT = 4
_PUSHBACK_MS = 20
_MAX_ROOM = 1 << 20
_UNKNOWN = "unknown"
_RESOURCE_EXHAUSTED, _CANCELLED, _DEADLINE_EXCEEDED, _UNIMPLEMENTED, _INTERNAL = 8, 1, 4, 12, 13

NativeRoute = tuple[int, int, str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class _Plan:
    """What the transport was last told of a queue."""

    bound: int = -1
    room: int = -1


def unloaded(route: Route) -> NotReady:
    """For a call that was on its way to a model that is not served any more."""
    return NotReady(f"{route.pipeline} was unloaded meanwhile")


class _Gone:
    """The entrance of a model that is not served any more."""

    def push(self, arrivals: Sequence[Arrival], now_ns: int) -> list[tuple[Arrival, Overloaded | NotReady]]:
        return [(arrival, unloaded(arrival.route)) for arrival in arrivals]

    def room(self, budget_ms: float) -> tuple[int, int]:
        return _MAX_ROOM, _MAX_ROOM

    def dispatch(self, again: Callable[[], None] | None) -> bool:
        return False


class MethodTable:
    """Numbers methods. Route 0 stands for unknown paths, group 0 for everything that no batch answers.

    Models come and go while calls are under way: a model's version keeps its route and its group for ever, whoever
    serves it. Changed by one thread at a time, beside the listener's.
    """

    def __init__(self, methods: GrpcMethods) -> None:
        self._methods = methods
        self.paths: list[str] = [_UNKNOWN]
        self.routes: list[Route | None] = [None]
        self.group_of_route: list[int] = [_OTHER_GROUP]
        self.entrances: dict[int, Entrance] = {}
        self._group_of_entrance: dict[int, int] = {}
        self._index_of_route: Mapping[int, int] = {}
        self._index_of_model: dict[ModelKey, int] = {}
        self._budgets_ms: dict[int, float] = {}
        self._plans: Mapping[int, _Plan] = {}
        self._unary: dict[str, int] = {}
        self._streams: dict[str, tuple[int, bool]] = {}
        self._models: list[tuple[str, str, int]] = []
        for path, route in methods.batched.items():
            self._unary[path] = self._add(path, route)
        for path in (*methods.closed, *methods.direct, MODEL_INFER):
            self._unary[path] = self._add(path, None)
        for path, route in methods.scored.items():
            self._add(path, route)
            self._streams[path] = (self._add(path, None), True)
        self._streams[MODEL_STREAM_INFER] = (self._add(MODEL_STREAM_INFER, None), True)
        for path in methods.streams:
            self._streams[path] = (self._add(path, None), False)
        self.set_models(methods.models)

    def set_models(self, routes: Mapping[ModelKey, InferRoutes]) -> None:
        """What `ModelInfer` serves from now on. A route may have several keys: its version, and none."""
        models = {key: both.unary for key, both in routes.items()}
        key_of_route: dict[int, ModelKey] = {}
        for key, route in models.items():
            key_of_route[id(route)] = max(key, key_of_route.get(id(route), key))
        served = {key: models[key] for key in key_of_route.values()}
        for key, route in served.items():
            if id(route) not in self._index_of_route:  # else it serves on as it did
                self._put_model(key, route)
        for key in self._index_of_model.keys() - served.keys():
            index = self._index_of_model[key]
            self.routes[index] = None
            self.entrances[self.group_of_route[index]] = _Gone()
        self._group_of_entrance = {id(entrance): group for group, entrance in self.entrances.items()}
        self._index_of_route = {id(route): index for index, route in enumerate(self.routes) if route is not None}
        self._models = [(*key, self._index_of_route[id(route)]) for key, route in models.items()]

    def _put_model(self, key: ModelKey, route: Route) -> None:
        index = self._index_of_model.get(key)
        if index is None:
            self._index_of_model[key] = self._add(MODEL_INFER, route)
            return
        group = self.group_of_route[index]
        self.entrances[group], self._budgets_ms[group] = route.entrance, route.budget_ms
        self.routes[index] = route

    def _add(self, path: str, route: Route | None) -> int:
        index = len(self.paths)
        self.paths.append(path)
        self.group_of_route.append(_OTHER_GROUP if route is None else self._group(route))
        self.routes.append(route)
        if route is not None:
            self._index_of_route = {**self._index_of_route, id(route): index}
        return index

    def _group(self, route: Route) -> int:
        entrance = route.entrance
        group = self._group_of_entrance.setdefault(id(entrance), len(self.entrances) + 1)
        self.entrances[group] = entrance
        self._budgets_ms[group] = min(route.budget_ms, self._budgets_ms.get(group, route.budget_ms))
        if group not in self._plans:
            self._plans = {**self._plans, group: _Plan()}
        return group

    def index_of(self, route: Route) -> int:
        """The number of a route that is served. Raises KeyError."""
        return self._index_of_route[id(route)]

    def group_of(self, route: Route) -> int | None:
        """The queue that a route's entrance takes from; None where its model is not served any more."""
        return self._group_of_entrance.get(id(route.entrance))

    # As the transport takes it

    def native_routes(self) -> list[NativeRoute]:
        """Group, budget, and what a full queue says."""
        routes: list[NativeRoute] = []
        for path, route, group in zip(self.paths, self.routes, self.group_of_route, strict=True):
            budget_ms = self._methods.budget_ms(path) if route is None else route.budget_ms
            name = "calls of this kind" if route is None else f"requests of pipeline {route.pipeline}"
            text = f"{name} have filled the queue that can be answered in time; retry later"
            trailers = (
                ("error-kind", "overloaded"), ("error-reason", "queue_full"), ("retry-after-ms", str(_PUSHBACK_MS)),
                ("grpc-retry-pushback-ms", str(_PUSHBACK_MS)),
            )  # fmt: skip
            routes.append((group, int(budget_ms * 1e6), text, trailers))
        return routes

    def native_methods(self, limits: Limits) -> dict[str, tuple[bool, bool, int, int]]:
        """By path: unary or not, whether its message names a model, route, messages Python may have unanswered."""
        found = {path: (True, path == MODEL_INFER, index, 0) for path, index in self._unary.items()}
        for path, (index, is_scored) in self._streams.items():
            found[path] = (False, False, index, limits.max_streams_per_connection if is_scored else _STREAM_CREDIT)
        return found

    def native_models(self) -> list[tuple[str, str, int]]:
        """Name, version, route."""
        return self._models

    # While it serves

    @property
    def has_closed_room(self) -> bool:
        """Whether some queue is not being taken from."""
        return any(plan.room == 0 for plan in self._plans.values())

    def plan(self, transport: Transport) -> None:
        """Tells the transport how much of each queue the next batch has room for, and how long it may be: no longer
        than can be answered in time.
        """
        for group, plan in self._plans.items():
            entrance = self.entrances[group]
            room, bound = entrance.room(self._budgets_ms[group])
            if room != plan.room:
                plan.room = room
                transport.set_room(group, room)
            if abs(bound - plan.bound) * 16 > plan.bound:
                plan.bound = bound
                transport.set_bound(group, bound)

    def count_unseen(self, index: int, tally: Sequence[int], ledger: Ledger) -> None:
        """Counts calls that ended in the transport."""
        queue_full, memory, concurrency, expired, cancelled, invalid = tally
        route, label = self.routes[index], self.paths[index].rpartition("/")[2]
        for reason, n in (("queue_full", queue_full), ("memory", memory), ("concurrency", concurrency)):
            ledger.count_unseen(route, label, _RESOURCE_EXHAUSTED, n, reason)
        ledger.count_unseen(route, label, _DEADLINE_EXCEEDED, expired)
        ledger.count_unseen(route, label, _CANCELLED, cancelled)
        ledger.count_unseen(route, label, _UNIMPLEMENTED if index == 0 else _INTERNAL, invalid)


def transport_limits(limits: Limits) -> dict[str, int]:
    """As the transport names them."""
    return {
        "max_message_bytes": limits.max_body_bytes,
        "max_header_bytes": limits.max_header_bytes,
        "max_buffered_bytes": limits.max_buffered_bytes,
        "max_streams": limits.max_streams_per_connection,
        "max_connections": limits.max_connections,
        "max_calls": limits.max_concurrent_requests,
        "handshake_timeout_ns": int(limits.header_timeout_s * 1e9),
        "write_timeout_ns": int(limits.write_timeout_s * 1e9),
        "max_age_ns": int(limits.max_connection_age_s * 1e9),
        "age_grace_ns": int(limits.drain_s * 1e9),
    }
