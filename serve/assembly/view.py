"""What the server says about itself, over both protocols: health, metadata, configuration, budgets, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from serve.assembly.endpoints import Service
from serve.context import RequestContext
from serve.errors import InvalidInput, NotFound, NotReady
from serve.ingress.grpc_methods import DirectMethod
from serve.ingress.wire.infer_codecs import unknown_model
from serve.ingress.wire.oip_models import model_config, model_metadata
from serve.observability.budget_report import budget_report
from serve.observability.exposition import render
from serve.observability.metrics import Metrics
from serve.repository.repository import Repository
from serve.version import VERSION

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters")
SERVER_NAME = "headroom"
OIP_SERVICE = "inference.GRPCInferenceService"


class View:
    """Implements `ServerView` for HTTP and answers the same over gRPC by `direct_methods`."""

    def __init__(
        self,
        services: Mapping[str, Service],
        repository: Repository,
        metrics: Metrics,
        problems: Mapping[str, str],
        is_serving: Callable[[], bool],
        grpc_transport: str,
    ) -> None:
        self._services = services
        self._repository = repository
        self._metrics = metrics
        self._problems = problems
        self._is_serving = is_serving
        self._extensions = (*EXTENSIONS, f"grpc_transport({grpc_transport})")
        self._hot_paths = {
            path.decode(): method.decode() for service in services.values() for method, path in service.http
        }

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
        service = self._service(name, version)
        versions = (service.spec.version,) if service.steps else self._repository.versions(name)
        spec = service.spec if service.steps else self._repository.model(name, version).spec
        return model_metadata(spec, versions)

    def model_config(self, name: str, version: str) -> Any:
        """A model's config.pbtxt as it was completed; a pipeline presents itself as an ensemble of its models."""
        service = self._service(name, version)
        if service.steps:
            return model_config(service.spec, service.steps)
        return self._repository.config(name)

    def check_model_ready(self, name: str, version: str) -> None:
        """Raises NotReady or NotFound with the reason."""
        if (problem := self.problem(name)) is not None:
            raise NotReady(problem)
        service = self._services.get(name)
        if service is None or not service.steps:
            self._repository.model(name, version)
        elif version not in ("", service.spec.version):
            raise unknown_model(name, version)

    def repository_index(self, *, only_ready: bool) -> Any:
        """Every model and version with its state and the reason where it is not ready."""
        index = pb.RepositoryIndexResponse()
        for state in self._repository.states():
            if state.state == "READY" or not only_ready:
                index.models.add(name=state.name, version=state.version, state=state.state, reason=state.reason)
        for service in self._services.values():
            if service.steps:
                index.models.add(name=service.name, version=service.spec.version, state="READY")
        return index

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

    def _service(self, name: str, version: str) -> Service:
        service = self._services.get(name)
        if service is None:
            self._repository.model(name, version)
            raise unknown_model(name, version)
        if service.steps and version not in ("", service.spec.version):
            raise unknown_model(name, version)
        return service


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
        "RepositoryIndex": (pb.RepositoryIndexRequest, lambda m: view.repository_index(only_ready=m.ready)),
    }
    return {f"/{OIP_SERVICE}/{name}": _direct(kind, answer) for name, (kind, answer) in answers.items()}


def _direct(kind: Any, answer: Callable[[Any], Any]) -> DirectMethod:
    def method(payload: bytes, _: RequestContext) -> bytes:
        try:
            message = kind.FromString(payload)
        except DecodeError:
            raise InvalidInput(f"the message is not a valid {kind.DESCRIPTOR.full_name}") from None
        body: bytes = answer(message).SerializeToString()
        return body

    return method
