"""What the server says about itself, over both protocols: health, metadata, configuration, budgets, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from serve.assembly.control import ModelControl, Parameters
from serve.assembly.endpoints import HttpKey, Service
from serve.context import RequestContext
from serve.errors import InvalidInput, NotFound, NotReady
from serve.ingress.grpc_methods import DirectMethod
from serve.ingress.wire.infer_codecs import unknown_model
from serve.ingress.wire.oip_models import model_config, model_metadata
from serve.ingress.wire.oip_statistics import model_statistics
from serve.observability.budget_report import budget_report
from serve.observability.exposition import render
from serve.observability.metrics import Metrics
from serve.observability.model_statistics import version_times
from serve.repository.repository import Repository
from serve.version import VERSION

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository",
    "model_repository(unload_dependents)", "parameters", "statistics",
)  # fmt: skip
SERVER_NAME = "headroom"
OIP_SERVICE = "inference.GRPCInferenceService"


class View:
    """Implements `ServerView` for HTTP and answers the same over gRPC by `direct_methods`."""

    def __init__(
        self,
        pipelines: Mapping[str, Service],
        control: ModelControl,
        repository: Repository,
        metrics: Metrics,
        problems: Mapping[str, str],
        is_serving: Callable[[], bool],
        grpc_transport: str,
    ) -> None:
        self._pipelines = pipelines
        self._control = control
        self._repository = repository
        self._metrics = metrics
        self._problems = problems
        self._is_serving = is_serving
        self._extensions = (*EXTENSIONS, f"grpc_transport({grpc_transport})")
        self._hot_paths: Mapping[str, str] = {}

    def is_live(self) -> bool:
        """The process answers, so it lives."""
        return True

    def is_ready(self) -> bool:
        """Every configured pipeline can answer and the replica is not draining."""
        return self._is_serving() and not self._problems

    def readiness_problem(self) -> str:
        """Why not, in words."""
        if not self._is_serving():
            return "the server is starting or draining"
        return "; ".join(f"pipeline {name}: {reason}" for name, reason in self._problems.items())

    def server_metadata(self) -> Any:
        """Name, version and the extensions that are really there."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=VERSION, extensions=self._extensions)

    def model_metadata(self, name: str, version: str) -> Any:
        """Tensors and versions."""
        pipeline = self._pipeline(name, version)
        if pipeline is not None:
            return model_metadata(pipeline.spec, (pipeline.spec.version,))
        return model_metadata(self._repository.model(name, version).spec, self._repository.versions(name))

    def model_config(self, name: str, version: str) -> Any:
        """A model's config.pbtxt as it was completed; a pipeline presents itself as an ensemble of its models."""
        pipeline = self._pipeline(name, version)
        if pipeline is not None:
            return model_config(pipeline.spec, pipeline.steps)
        self._repository.model(name, version)
        return self._repository.config(name)

    def check_model_ready(self, name: str, version: str) -> None:
        """Raises NotReady or NotFound with the reason."""
        if (problem := self.problem(name)) is not None:
            raise NotReady(problem)
        if self._pipeline(name, version) is None:
            self._repository.model(name, version)

    async def repository_index(self, *, only_ready: bool) -> Any:
        """Every model and version with its state and the reason where it is not ready."""
        index = pb.RepositoryIndexResponse()
        for state in await asyncio.to_thread(self._repository.states):
            if state.state == "READY" or not only_ready:
                index.models.add(name=state.name, version=state.version, state=state.state, reason=state.reason)
        for pipeline in self._pipelines.values():
            index.models.add(name=pipeline.name, version=pipeline.spec.version, state="READY")
        return index

    def model_statistics(self, name: str, version: str) -> Any:
        """Cumulative counts and times of every version that serves, or of those asked for. Raises NotFound."""
        wanted: list[tuple[str, str]] = []
        if not name:
            wanted = self._repository.ready()
            wanted += [(pipeline.name, pipeline.spec.version) for pipeline in self._pipelines.values()]
        elif (pipeline := self._pipeline(name, version)) is not None:
            wanted = [(name, pipeline.spec.version)]
        else:
            newest = self._repository.model(name, version).spec.version
            wanted = [(name, newest)] if version else [(name, each) for each in self._repository.versions(name)]
        return model_statistics(version_times(self._metrics.snapshot(), wanted))

    async def load_model(self, name: str, parameters: Parameters, context: RequestContext) -> None:
        """Loads a model on every replica. Raises HeadroomError."""
        await self._control.load(name, parameters, context)

    async def unload_model(self, name: str, parameters: Parameters, context: RequestContext) -> None:
        """Takes a model out of service on every replica. Raises HeadroomError."""
        await self._control.unload(name, parameters, context)

    def budgets(self) -> Mapping[str, Any]:
        """`GET /v2/budgets`: all replicas together."""
        return budget_report(self._metrics.snapshot())

    def metrics_text(self, accept: str) -> tuple[bytes, str]:
        """`GET /metrics`: all replicas together."""
        return render(self._metrics.snapshot(), accept)

    def why_closed(self, path: str) -> str | None:
        """Why the pipeline that `path` belongs to cannot answer, where that is so."""
        _, version, name, *_ = [*path.split("/", 3), "", ""]
        return self.problem(name) if version == "v1" else None

    def problem(self, pipeline: str) -> str | None:
        """Why a pipeline cannot answer, in words; None where it can, or is none."""
        reason = self._problems.get(pipeline)
        return None if reason is None else f"pipeline {pipeline} is not ready: {reason}"

    def hot_paths(self) -> Mapping[str, str]:
        """Paths that are answered in batches, with the verb that is allowed."""
        return self._hot_paths

    def set_hot_paths(self, routes: Iterable[HttpKey]) -> None:
        """Called when they are others."""
        self._hot_paths = {path.decode(): method.decode() for method, path in routes}

    def _pipeline(self, name: str, version: str) -> Service | None:
        """None where no pipeline has that name. Raises NotFound for a version that it has not."""
        pipeline = self._pipelines.get(name)
        if pipeline is not None and version not in ("", pipeline.spec.version):
            raise unknown_model(name, version)
        return pipeline


def control_methods(view: View) -> dict[str, DirectMethod]:
    """The methods that load and unload."""

    def load(payload: bytes, context: RequestContext) -> Awaitable[bytes]:
        message = _parsed(pb.RepositoryModelLoadRequest, payload)
        return _emptied(view.load_model(message.model_name, _parameters(message), context))

    def unload(payload: bytes, context: RequestContext) -> Awaitable[bytes]:
        message = _parsed(pb.RepositoryModelUnloadRequest, payload)
        return _emptied(view.unload_model(message.model_name, _parameters(message), context))

    return {f"/{OIP_SERVICE}/RepositoryModelLoad": load, f"/{OIP_SERVICE}/RepositoryModelUnload": unload}


async def _emptied(work: Awaitable[None]) -> bytes:
    """Both answers are messages without a field."""
    await work
    return b""


def _parameters(message: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, parameter in message.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(parameter, kind)
    return found


def direct_methods(view: View) -> dict[str, DirectMethod]:
    """The methods of the protocol's gRPC service that no pipeline answers."""

    def model_ready(message: Any) -> Any:
        try:
            view.check_model_ready(message.name, message.version)
        except (NotReady, NotFound):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    answers: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "ServerLive": (pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=view.is_live())),
        "ServerReady": (pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=view.is_ready())),
        "ModelReady": (pb.ModelReadyRequest, model_ready),
        "ServerMetadata": (pb.ServerMetadataRequest, lambda _: view.server_metadata()),
        "ModelMetadata": (pb.ModelMetadataRequest, lambda m: view.model_metadata(m.name, m.version)),
        "ModelConfig": (
            pb.ModelConfigRequest,
            lambda m: pb.ModelConfigResponse(config=view.model_config(m.name, m.version)),
        ),
        "ModelStatistics": (pb.ModelStatisticsRequest, lambda m: view.model_statistics(m.name, m.version)),
    }

    async def index(message: Any) -> bytes:
        body: bytes = (await view.repository_index(only_ready=message.ready)).SerializeToString()
        return body

    return {
        **{f"/{OIP_SERVICE}/{name}": _direct(kind, answer) for name, (kind, answer) in answers.items()},
        f"/{OIP_SERVICE}/RepositoryIndex": lambda payload, _: index(_parsed(pb.RepositoryIndexRequest, payload)),
    }


def _direct(kind: Any, answer: Callable[[Any], Any]) -> DirectMethod:
    def method(payload: bytes, _: RequestContext) -> bytes:
        body: bytes = answer(_parsed(kind, payload)).SerializeToString()
        return body

    return method


def _parsed(kind: Any, payload: bytes) -> Any:
    try:
        return kind.FromString(payload)
    except DecodeError:
        raise InvalidInput(f"the message is not a valid {kind.DESCRIPTOR.full_name}") from None
