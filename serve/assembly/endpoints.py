"""What a pipeline or model brings into a replica: its runner and the ways in to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from serve.backends.base import ModelSpec
from serve.batching.arrival import Codec, Entrance, Route
from serve.batching.runner import Runner
from serve.ingress.grpc_methods import DirectMethod, InferRoutes, ModelKey
from serve.ingress.http_app import Handler
from serve.ingress.wire.infer_codecs import GrpcInferCodec, GrpcStreamInferCodec, HttpInferCodec, InferEndpoint
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
    grpc_direct: Mapping[str, DirectMethod] = field(default_factory=dict)
    """Methods that are no batch's work."""
    handlers: Sequence[tuple[str, str, Handler]] = ()
    """HTTP routes that are no batch's work: method, path, handler."""
    infer: Mapping[ModelKey, InferRoutes] = field(default_factory=dict)
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
    """Makes the routes of one pipeline or model: they share its runner, budget and metrics."""

    def __init__(self, name: str, entrance: Entrance, budget_ms: float, metrics: PipelineMetrics) -> None:
        self.name = name
        self._entrance = entrance
        self._budget_ms = budget_ms
        self._metrics = metrics

    def route(self, codec: Codec) -> Route:
        """The way in by one codec."""
        return Route(codec, self._entrance, self._budget_ms, self._metrics, self.name)

    def infer(
        self, endpoint: InferEndpoint, max_body_bytes: int
    ) -> tuple[dict[HttpKey, Route], dict[ModelKey, InferRoutes]]:
        """The protocol's `infer` over both protocols, by the address with the version in it."""
        http = self.route(HttpInferCodec(endpoint, max_body_bytes))
        grpc = InferRoutes(self.route(GrpcInferCodec(endpoint)), self.route(GrpcStreamInferCodec(endpoint)))
        name, version = endpoint.spec.name, endpoint.spec.version
        return {(b"POST", f"/v2/models/{name}/versions/{version}/infer".encode()): http}, {(name, version): grpc}


def unversioned_http(name: str, routes: Mapping[HttpKey, Route]) -> dict[HttpKey, Route]:
    """A version's routes, and the same at the address that names none."""
    (route,) = routes.values()
    return {**routes, (b"POST", f"/v2/models/{name}/infer".encode()): route}


def unversioned_infer(routes: Mapping[ModelKey, InferRoutes]) -> dict[ModelKey, InferRoutes]:
    """A version's routes, and the same where none is asked for."""
    (((name, _), both),) = routes.items()
    return {**routes, (name, ""): both}


def publish(name: str, published: Published, metrics: Metrics) -> PipelineMetrics:
    """The recorder of a pipeline or model, its budgets published."""
    return metrics.pipeline(
        name, ("decode", *published.stages, "encode"),
        budget_ms=published.budget_ms, stage_budgets_ms=published.stage_budgets_ms,
    )  # fmt: skip
