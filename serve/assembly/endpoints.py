"""What a pipeline or model brings into a replica: its runner and the ways in to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from serve.backends.base import ModelSpec
from serve.batching.arrival import Arrival, Codec, Entrance, Route
from serve.batching.collector import Collector
from serve.batching.runner import Flow, Runner
from serve.budgets.ladder import Ladder
from serve.errors import NotReady, Overloaded
from serve.ingress.wire.infer_codecs import GrpcInferCodec, HttpInferCodec, InferEndpoint
from serve.observability.metrics import Metrics, PipelineMetrics

HttpKey = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Service:
    """One pipeline or model, ready to be listened for. `spec` is what the protocol's metadata says of it."""

    name: str
    spec: ModelSpec
    runner: Runner
    http: Mapping[HttpKey, Route]
    grpc: Mapping[str, Route] = field(default_factory=dict)
    grpc_streams: Mapping[str, Route] = field(default_factory=dict)
    infer: Mapping[tuple[str, str], Route] = field(default_factory=dict)
    """By model name and version: what `ModelInfer` looks its route up in."""
    steps: Sequence[str] = ()
    """Models a pipeline is made of; empty for a model."""
    warm_up: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Published:
    """The budget of a pipeline or model and its stages, in milliseconds."""

    budget_ms: float
    stages: tuple[str, ...]
    stage_budgets_ms: Mapping[str, float]


class RouteMaker:
    """Makes the routes of one pipeline or model: they share its collector, budget and metrics."""

    def __init__(self, name: str, collector: Entrance, published: Published, metrics: Metrics) -> None:
        self.name = name
        self._collector = collector
        self._published = published
        self.metrics: PipelineMetrics = metrics.pipeline(
            name, ("decode", *published.stages, "encode"),
            budget_ms=published.budget_ms, stage_budgets_ms=published.stage_budgets_ms,
        )  # fmt: skip

    def route(self, codec: Codec) -> Route:
        """The way in by one codec."""
        return Route(codec, self._collector, self._published.budget_ms, self.metrics, self.name)

    def infer(
        self, endpoint: InferEndpoint, max_body_bytes: int
    ) -> tuple[dict[HttpKey, Route], dict[tuple[str, str], Route]]:
        """The protocol's `infer` over both protocols, with and without the version in the address."""
        http = self.route(HttpInferCodec(endpoint, max_body_bytes))
        grpc = self.route(GrpcInferCodec(endpoint))
        name, version = endpoint.spec.name, endpoint.spec.version
        base = f"/v2/models/{name}"
        paths = (f"{base}/infer", f"{base}/versions/{version}/infer")
        return {(b"POST", path.encode()): http for path in paths}, {(name, ""): grpc, (name, version): grpc}


def make_runner(
    collector: Collector, flow: Flow, ladder: Ladder, maker: RouteMaker, *, max_batch_items: int, max_in_flight: int
) -> Runner:
    """A runner on the routes' collector and metrics."""
    return Runner(
        collector, flow, ladder, maker.metrics, max_batch_items=max_batch_items, max_batches_in_flight=max_in_flight
    )


class ClosedEntrance:
    """Stands in for the collector of a pipeline that could not be put together: everything is told why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def push(
        self, arrivals: Sequence[Arrival], now_ns: int, delay_ns: int = 0
    ) -> list[tuple[Arrival, Overloaded | NotReady]]:
        """Refuses all."""
        return [(arrival, NotReady(self._reason)) for arrival in arrivals]
