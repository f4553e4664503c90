"""The native transport's table of methods: who is numbered how, and what the transport is told of each queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from serve.batching.arrival import Route
from serve.budgets.deadline import OTHER_BUDGET_MS
from serve.ingress.grpc_methods import GrpcMethods, InferRoutes
from serve.ingress.grpc_native_table import MethodTable
from serve.ingress.wire.infer_codecs import MODEL_INFER
from serve.settings import Limits

SCORE, BATCH, STREAM, CHECK, CLOSED = "/t.T/Score", "/t.T/Batch", "/t.T/Stream", "/t.T/Check", "/t.T/Closed"


class Entrance:
    """Says what room it has."""

    def __init__(self) -> None:
        self.room_now = (256, 100)
        self.asked_ms: list[float] = []

    def room(self, budget_ms: float) -> tuple[int, int]:
        self.asked_ms.append(budget_ms)
        return self.room_now


class Transport:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def set_room(self, group: int, room: int) -> None:
        self.told.append(("room", group, room))

    def set_bound(self, group: int, bound: int) -> None:
        self.told.append(("bound", group, bound))

    def news(self) -> list[tuple[str, int, int]]:
        told, self.told = self.told, []
        return told


class Ledger:
    """Keeps what was counted, of kinds there were any of."""

    def __init__(self) -> None:
        self.counted: list[tuple[Any, ...]] = []

    def count_unseen(self, route: Route | None, label: str, status: int, n: int, reason: str = "") -> None:
        if n:
            self.counted.append((route, label, status, n, reason))


def route_to(entrance: Entrance, budget_ms: float = 50.0) -> Route:
    return Route(None, entrance, budget_ms, None, "fraud")  # type: ignore[arg-type]


@pytest.fixture
def entrance() -> Entrance:
    return Entrance()


@pytest.fixture
def model() -> Route:
    return route_to(Entrance(), 20.0)


@pytest.fixture
def score(entrance: Entrance) -> Route:
    return route_to(entrance)


@pytest.fixture
def table(entrance: Entrance, score: Route, model: Route) -> MethodTable:
    methods = GrpcMethods(
        batched={SCORE: score, BATCH: route_to(entrance, 30.0)}, direct={CHECK: lambda payload, _: payload},
        scored={STREAM: score}, closed={CLOSED: "no model"},
        models=dict.fromkeys((("m", ""), ("m", "1")), InferRoutes(model, model)),
    )  # fmt: skip
    return MethodTable(methods)


def index_of(table: MethodTable, path: str) -> int:
    return table.native_methods(Limits())[path][2]


def test_routes_of_one_pipeline_share_a_queue_and_models_have_their_own(table: MethodTable, model: Route) -> None:
    groups = {path: table.group_of_route[index_of(table, path)] for path in (SCORE, BATCH, CHECK, CLOSED, MODEL_INFER)}
    of_model = table.group_of_route[table.index_of(model)]
    assert groups[SCORE] == groups[BATCH] != 0
    assert of_model not in (0, groups[SCORE])
    assert groups[CHECK] == groups[CLOSED] == groups[MODEL_INFER] == 0
    assert len(table.entrances) == 2


def test_a_models_versions_lead_to_the_same_route(table: MethodTable, model: Route) -> None:
    index = table.index_of(model)
    assert table.native_models() == [("m", "", index), ("m", "1", index)]
    assert table.routes[index] is model


def test_model_infer_is_a_method_even_where_no_model_is_loaded() -> None:
    table = MethodTable(GrpcMethods(batched={}, direct={}))
    is_unary, names_model, index, _ = table.native_methods(Limits())[MODEL_INFER]
    assert (is_unary, names_model) == (True, True)
    assert table.routes[index] is None


def test_only_scored_streams_may_have_as_many_messages_under_way_as_a_connection_has_streams(
    table: MethodTable,
) -> None:
    limits = Limits()
    assert table.native_methods(limits)[STREAM] == (
        False,
        False,
        index_of(table, STREAM),
        limits.max_streams_per_connection,
    )


def test_a_route_has_its_budget_and_says_whose_queue_is_full(table: MethodTable) -> None:
    routes = table.native_routes()
    _, budget_ns, text, trailers = routes[index_of(table, BATCH)]
    assert budget_ns == 30_000_000
    assert "pipeline fraud" in text
    assert dict(trailers)["grpc-retry-pushback-ms"] == dict(trailers)["retry-after-ms"]
    assert routes[0][:2] == (0, int(OTHER_BUDGET_MS * 1e6))


def test_the_transport_is_told_of_changes_alone(table: MethodTable, entrance: Entrance, score: Route) -> None:
    transport = Transport()
    group = table.group_of_route[table.index_of(score)]
    table.plan(transport)  # type: ignore[arg-type]
    assert {("room", group, 256), ("bound", group, 100)} <= set(transport.news())
    table.plan(transport)  # type: ignore[arg-type]
    assert transport.news() == []
    entrance.room_now = (0, 104)  # a bound that moves by a sixteenth is not worth a call
    assert not table.has_closed_room
    table.plan(transport)  # type: ignore[arg-type]
    assert transport.news() == [("room", group, 0)]
    assert table.has_closed_room
    entrance.room_now = (256, 50)
    table.plan(transport)  # type: ignore[arg-type]
    assert transport.news() == [("room", group, 256), ("bound", group, 50)]
    assert set(entrance.asked_ms) == {30.0}  # the tightest budget of the queue


@pytest.mark.parametrize(
    ("path", "tally", "expected"),
    [
        (SCORE, (1, 0, 0, 0, 0, 0), [("Score", 8, 1, "queue_full")]),
        (SCORE, (0, 2, 3, 0, 0, 0), [("Score", 8, 2, "memory"), ("Score", 8, 3, "concurrency")]),
        (SCORE, (0, 0, 0, 4, 5, 6), [("Score", 4, 4, ""), ("Score", 1, 5, ""), ("Score", 13, 6, "")]),
        (None, (0, 0, 0, 0, 0, 7), [("unknown", 12, 7, "")]),
    ],
)
def test_calls_that_ended_in_the_transport_are_counted_by_their_end(
    table: MethodTable, path: str | None, tally: Sequence[int], expected: list[tuple[Any, ...]]
) -> None:
    ledger = Ledger()
    index = 0 if path is None else index_of(table, path)
    table.count_unseen(index, tally, ledger)  # type: ignore[arg-type]
    assert [one[1:] for one in ledger.counted] == expected
    assert all(one[0] is table.routes[index] for one in ledger.counted)
