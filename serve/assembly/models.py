"""Models of the repository as services: the protocol's `infer`, batched; loaded and unloaded while others serve.

A version of a model is a service: its runner and queue come with it and end with it. Calls to other models notice nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.assembly.endpoints import (
    HttpKey,
    Published,
    RouteMaker,
    Service,
    publish,
    unversioned_http,
    unversioned_infer,
)
from serve.backends.base import Model, ModelSpec, RequestModel
from serve.batching.accounts import BatchAccounts
from serve.batching.arrival import Route
from serve.batching.collector import Collector
from serve.batching.runner import Runner
from serve.budgets.ladder import Ladder, Rung
from serve.errors import InvalidInput
from serve.ingress.grpc_methods import InferRoutes, ModelKey
from serve.ingress.wire.infer_codecs import ModelEndpoint
from serve.observability.metrics import Metrics
from serve.observability.model_statistics import BatchTimes, ModelStatistics
from serve.pipelines.infer.flow import STAGES, InferFlow
from serve.repository.config import config_of_json, step_names
from serve.repository.loading import Progress, close_model
from serve.repository.repository import LoadResult, Repository
from serve.settings import ModelSettings, RepositorySettings, Settings

log = logging.getLogger(__name__)

_MAX_REQUESTS_TOGETHER = 256
_LAST_ENTRANCE_S = 0.25
"""How long a listener may take from looking up a route to leaving a request there."""
_RETIRE_S = 60.0
"""How long what was accepted by a version that is replaced may take to be answered."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A version that serves."""

    model: Model
    service: Service


class ModelServices:
    """One service per ready version. Readers see one consistent table; `load` and `unload` run one at a time."""

    def __init__(
        self, settings: Settings, repository: Repository, metrics: Metrics, parts_of: Mapping[str, str]
    ) -> None:
        """`parts_of`: models that are a pipeline's, which alone says what version of them serves."""
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._parts_of = parts_of
        self._lock = threading.Lock()
        self._placed: Mapping[str, Mapping[int, _Placed]] = {}
        self._on_change: Callable[[], None] = lambda: None
        self._recorders: dict[tuple[str, str], ModelStatistics] = {}
        repository.on_asked = self._count_asked
        for name in repository.names():
            self._placed = {**self._placed, **self._place(name)}

    def on_change(self, call: Callable[[], None]) -> None:
        """Who is told when the routes are others."""
        self._on_change = call

    def _count_asked(self, spec: ModelSpec, rows: int, took_ns: int) -> None:
        """A request of one model to another is in the statistics as every other is."""
        statistics = self._statistics(spec.name, spec.version)
        statistics.observe(BatchTimes(1, took_ns, 0, 0, 0, 0, took_ns, 0), ((rows, 1),), time.time_ns() // 1_000_000)

    def _statistics(self, name: str, version: str) -> ModelStatistics:
        """One and the same recorder for a version, whoever asks it."""
        key = name, version
        if key not in self._recorders:
            self._recorders[key] = self._metrics.recorder(ModelStatistics, name, version)
        return self._recorders[key]

    # What there is

    def services(self) -> list[Service]:
        """Of every version."""
        return [placed.service for versions in self._placed.values() for placed in versions.values()]

    def http_routes(self) -> dict[HttpKey, Route]:
        """By version, and of the newest without it."""
        found: dict[HttpKey, Route] = {}
        for name, versions in self._placed.items():
            for number in sorted(versions):
                found |= unversioned_http(name, versions[number].service.http)
        return found

    def infer_routes(self) -> dict[ModelKey, InferRoutes]:
        """By name and version, and of the newest without it."""
        found: dict[ModelKey, InferRoutes] = {}
        for versions in self._placed.values():
            for number in sorted(versions):
                found |= unversioned_infer(versions[number].service.infer)
        return found

    # Control

    def load(self, name: str, config: str = "", progress: Progress = log.info) -> None:
        """Loads the model's folder anew, `config` (JSON) in place of its own; what serves goes on until all of it is
        ready. Raises NotFound, InvalidInput with what is wrong.
        """
        with self._lock:
            self._check_free(name)
            given = config_of_json(config, name) if config else None
            parts = self._repository.parts_of(name) if given is None else step_names(given)
            for part in self._repository.with_parts(parts):
                if part != name and not self._repository.loaded(part):
                    self._load(part, None, progress)
            self._load(name, given, progress)

    def unload(self, name: str, *, with_parts: bool = False) -> None:
        """Takes the model out of service, and what an ensemble is made of too, as far as no other one is; what was
        accepted is answered. Raises NotFound, InvalidInput.
        """
        with self._lock:
            self._check_free(name)
            parts = self._repository.with_parts(self._repository.parts_of(name)) if with_parts else []
            self._swap(self._repository.unload(name))
            others = [other for other in self._placed if other not in parts]
            needed = {*self._repository.with_parts(others), *self._parts_of}
            for part in parts:
                if part not in needed and self._repository.loaded(part):
                    self._swap(self._repository.unload(part))

    def _load(self, name: str, config: ModelConfig | None, progress: Progress) -> None:
        result = self._repository.load(name, config, progress)
        self._swap(result)
        if result.reason:
            raise InvalidInput(f"failed to load '{name[:128]}': {result.reason}")

    def _check_free(self, name: str) -> None:
        pipeline = self._parts_of.get(name)
        if pipeline is not None:
            raise InvalidInput(
                f"model '{name[:128]}' is a part of pipeline {pipeline}; its version is a setting of the pipeline"
            )

    def _swap(self, result: LoadResult) -> None:
        """New versions take over at once; old ones end with their last answer."""
        name, former = result.name, self._placed.get(result.name, {})
        placed = self._place(name)
        fresh = [one for number, one in placed.get(name, {}).items() if former.get(number) is not one]
        for one in fresh:
            one.service.runner.start()
        others = {other: versions for other, versions in self._placed.items() if other != name}
        self._placed = {**others, **placed}
        self._on_change()
        if result.retired:
            time.sleep(_LAST_ENTRANCE_S)  # requests that were on their way to the former versions are taken in by them
        for model in result.retired:
            for one in former.values():
                if one.model is model:
                    one.service.runner.stop(_RETIRE_S)
            self._repository.wait_until_unasked(model, _RETIRE_S)
            close_model(model)

    def _place(self, name: str) -> dict[str, dict[int, _Placed]]:
        """The model's ready versions, with the services that they have already; nothing where there is none."""
        former = self._placed.get(name, {})
        placed = {
            number: former[number] if number in former and former[number].model is model else self._serve(name, model)
            for number, model in self._repository.loaded(name).items()
        }
        return {name: placed} if placed else {}

    def _serve(self, name: str, model: Model) -> _Placed:
        settings = self._settings.models.get(name, ModelSettings())
        collector = Collector(name, max_items=settings.max_queue_items)
        published = Published(settings.budget_ms, STAGES, {})
        recorder = publish(name, published, self._metrics)
        spec = model.spec
        runner = Runner(
            collector, InferFlow(model, self._repository.labels(name)), Ladder((Rung("", 1.0),)), recorder,
            max_batch_items=min(_MAX_REQUESTS_TOGETHER, max(1, spec.max_batch_size)),
            max_batches_in_flight=model.num_instances if isinstance(model, RequestModel) else 1,
            waits_elsewhere=isinstance(model, RequestModel) or spec.platform == "ensemble",
            accounts=BatchAccounts(self._statistics(name, spec.version)),
        )  # fmt: skip
        maker = RouteMaker(name, runner, published.budget_ms, recorder)
        http, infer = maker.infer(ModelEndpoint(spec), self._settings.limits.max_body_bytes)
        return _Placed(model, Service(name, spec, runner, http, infer=infer))


def load_at_start(
    settings: RepositorySettings, repository: Repository, parts: Iterable[str], progress: Progress
) -> None:
    """Loads what the control mode has serve from the start, and pipelines' parts. Raises InvalidInput."""
    if settings.control != "explicit" or "*" in settings.load:
        return repository.load_all(progress)
    return repository.load_all(progress, {*settings.load, *parts})
