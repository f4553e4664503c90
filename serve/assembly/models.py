"""Models of the repository as services of their own: the protocol's `infer`, batched."""

from __future__ import annotations

from serve.assembly.endpoints import Published, RouteMaker, Service, publish
from serve.batching.collector import Collector
from serve.batching.runner import Runner
from serve.budgets.ladder import Ladder, Rung
from serve.ingress.wire.infer_codecs import ModelEndpoint
from serve.observability.metrics import Metrics
from serve.pipelines.infer.flow import STAGES, InferFlow
from serve.repository.repository import Repository
from serve.settings import ModelSettings, Settings

_MAX_REQUESTS_TOGETHER = 256


def model_services(settings: Settings, repository: Repository, metrics: Metrics) -> list[Service]:
    """A service per model that has a version to serve."""
    names = dict.fromkeys(state.name for state in repository.states() if state.state == "READY")
    return [_service(name, settings, repository, metrics) for name in names]


def _service(name: str, settings: Settings, repository: Repository, metrics: Metrics) -> Service:
    model_settings = settings.models.get(name, ModelSettings())
    spec = repository.model(name).spec
    collector = Collector(name, max_items=model_settings.max_queue_items)
    published = Published(model_settings.budget_ms, STAGES, {})
    recorder = publish(name, published, metrics)
    flow = InferFlow(lambda: repository.model(name), repository.labels(name))
    runner = Runner(
        collector, flow, Ladder((Rung("", 1.0),)), recorder,
        max_batch_items=min(_MAX_REQUESTS_TOGETHER, max(1, spec.max_batch_size)),
    )  # fmt: skip
    maker = RouteMaker(name, runner, published.budget_ms, recorder)
    http, infer = maker.infer(ModelEndpoint(spec), settings.limits.max_body_bytes)
    return Service(name, spec, runner, http, infer=infer)
