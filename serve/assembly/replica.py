"""One ingress replica: sockets, metrics, models, pipelines, listeners; made, started, tuned, drained. No Ray in here.

Made by `serve.deployments.Ingress`, or by a test in its own process.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from serve.assembly import fraud
from serve.assembly.control import ModelControl
from serve.assembly.endpoints import HttpKey, Service
from serve.assembly.fraud import FraudPipeline, fraud_pipeline
from serve.assembly.models import ModelServices, load_at_start
from serve.assembly.view import OIP_SERVICE, View, control_methods, direct_methods
from serve.backends.base import ModelSpec, Tensor
from serve.backends.loaders import model_loaders
from serve.batching.arrival import Listener, Route
from serve.errors import HeadroomError, NotReady
from serve.ingress.admission import Admission
from serve.ingress.grpc_health import Health, reflection_streams
from serve.ingress.grpc_listener import GrpcListener, grpc_listener, is_native
from serve.ingress.grpc_methods import GrpcMethods, InferRoutes, ModelKey
from serve.ingress.http import HttpListener
from serve.ingress.http_app import main_app, metrics_app
from serve.ingress.ledger import Ledger
from serve.ingress.sockets import Endpoint, SocketLease, acquire
from serve.ingress.wire.fraud_grpc import SERVICE as FRAUD_SERVICE
from serve.ingress.wire.fraud_grpc import UNARY_METHODS as FRAUD_METHODS
from serve.ingress.wire.infer_codecs import unknown_model
from serve.observability.logs import AccessLog
from serve.observability.metrics import Metrics
from serve.repository.repository import Repository
from serve.settings import Settings, Tunables, access_log_path, cache_dir, repository_dir, run_dir
from serve.version import VERSION

log = logging.getLogger(__name__)

Progress = Callable[[str], None]

_SWITCH_INTERVAL_S = 0.001
"""How long a Python thread may keep another waiting: chosen by benchmarks/fraud.py between 0.1 and 5 ms."""


class Replica:
    """Everything one process serves. `start` returns when it answers; `close` when nothing is in flight any more."""

    def __init__(self, settings: Settings, owner_pid: int, progress: Progress) -> None:
        self._settings = settings
        self._owner_pid = owner_pid
        self._progress = progress
        self._pipelines: dict[str, Service] = {}
        self._problems: dict[str, str] = {}
        self._listeners: list[Listener] = []
        self._fraud: FraudPipeline | None = None
        self._is_serving = False
        self._health: Health | None = None
        self._view: View
        self._models: ModelServices
        self._control: ModelControl
        self._http: HttpListener | None = None
        self._grpc: GrpcListener | None = None
        self._repository: Repository
        self._lease: SocketLease
        self._metrics: Metrics
        self._access_log: AccessLog

    def start(self, tunables: Tunables) -> None:
        """Takes the sockets, loads, warms up, listens. Raises what makes it impossible, in words for a person."""
        settings = self._settings
        folder = run_dir(settings)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lease = acquire(_endpoints(settings), run_dir=folder, owner_pid=self._owner_pid)
        self._metrics = Metrics.open(folder, version=VERSION)
        self._access_log = AccessLog(access_log_path(settings), max_lines_per_s=tunables.max_access_lines_per_s)
        self._access_log.start()

        def ask(name: str, version: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return repository.ask(name, version, inputs)

        def describe(name: str, version: str) -> ModelSpec:
            return repository.model(name, version).spec

        loaders = model_loaders(cache_dir(settings), ask, describe)
        repository = self._repository = Repository(repository_dir(settings), loaders)
        parts = {} if settings.pipelines.fraud is None else {fraud.MODEL: "fraud"}
        load_at_start(settings.repository, repository, parts, self._progress)
        self._assemble(repository, parts)
        self.reconfigure(tunables)
        for service in (*self._pipelines.values(), *self._models.services()):
            service.warm_up()  # so that the first request is not the one that compiles
            service.runner.start()
        self._control = ModelControl(settings.repository, repository, self._models, folder)
        self._control.open()
        self._listen(repository)
        self._is_serving = True
        _settle_down()
        self._progress(f"answering on {settings.listen.host}, ports {settings.listen.http_port} (HTTP), "
                       f"{settings.listen.grpc_port} (gRPC), {settings.listen.metrics_port} (metrics)")  # fmt: skip

    def reconfigure(self, tunables: Tunables) -> None:
        """Applies tunables while serving."""
        logging.getLogger("serve").setLevel(tunables.log_level)
        self._access_log.set_rate(tunables.max_access_lines_per_s)
        if self._fraud is not None:
            self._fraud.tune(tunables.fraud)

    def check(self) -> None:
        """Raises NotReady when only a new process can help; called about once a second."""
        if not self._lease.is_held:
            raise NotReady("the holder of the listening sockets has ended")
        if self._grpc is not None:
            self._grpc.check()
        if self._fraud is not None:
            self._fraud.check()

    def close(self) -> None:
        """Stops accepting, answers what was accepted, at most for `limits.drain_s`, and frees everything."""
        self._is_serving = False
        if self._health is not None:
            self._health.shut_down()
        deadline_ns = time.monotonic_ns() + int(self._settings.limits.drain_s * 1e9)
        with ThreadPoolExecutor(max(1, len(self._listeners))) as drains:
            list(drains.map(lambda listener: listener.drain(deadline_ns), self._listeners))
        self._control.close()
        for service in (*self._pipelines.values(), *self._models.services()):
            service.runner.stop(timeout_s=1.0)
        if self._fraud is not None:
            self._fraud.close()
        self._repository.close()
        self._access_log.close()
        self._metrics.close()
        self._lease.close()

    def _assemble(self, repository: Repository, parts: Mapping[str, str]) -> None:
        self._models = ModelServices(self._settings, repository, self._metrics, parts)
        self._models.on_change(self._change_routes)
        if (published := self._settings.pipelines.fraud) is not None:
            try:
                self._fraud = fraud_pipeline(self._settings, published, repository, self._metrics)
                self._pipelines["fraud"] = self._fraud.service
            except HeadroomError as error:
                log.error("pipeline fraud cannot serve: %s", error.message)
                self._problems["fraud"] = error.message

    def _http_routes(self) -> dict[HttpKey, Route]:
        return self._models.http_routes() | {k: route for s in self._pipelines.values() for k, route in s.http.items()}

    def _infer_routes(self) -> dict[ModelKey, InferRoutes]:
        return self._models.infer_routes() | {
            k: route for s in self._pipelines.values() for k, route in s.infer.items()
        }

    def _change_routes(self) -> None:
        """Models have come or gone, while the listeners serve or before they do."""
        if self._http is None or self._grpc is None:
            return
        self._http.routes = routes = self._http_routes()
        self._view.set_hot_paths(routes)
        self._grpc.change_models(self._infer_routes())

    def _listen(self, repository: Repository) -> None:
        settings = self._settings
        transport = "native" if is_native(settings.listen) else "aio"
        self._view = view = View(
            self._pipelines,
            self._control,
            repository,
            self._metrics,
            self._problems,
            lambda: self._is_serving,
            transport,
        )
        sockets = self._lease.sockets
        handlers = [handler for service in self._pipelines.values() for handler in service.handlers]
        for name, app in (("http", main_app(view, handlers)), ("metrics", metrics_app(view))):
            ledger = Ledger(name, self._metrics, self._access_log)
            admission = Admission(settings.listen.host)
            listener = HttpListener(name, [sockets[name]], {}, app, settings.limits, admission, ledger)
            self._listeners.append(listener)
            self._http = self._http or listener
        self._grpc = self._grpc_listener(view, repository)
        self._listeners.append(self._grpc)
        self._change_routes()
        for each in self._listeners:
            each.start()

    def _grpc_listener(self, view: View, repository: Repository) -> GrpcListener:
        settings, services = self._settings, self._pipelines.values()
        problem = view.problem("fraud")
        names = [OIP_SERVICE, *([FRAUD_SERVICE] if self._fraud is not None else [])]
        self._health = Health(names)

        def no_model(name: str, version: str) -> HeadroomError:
            try:
                repository.model(name, version)  # says why, where it knows the model
            except HeadroomError as error:
                return error
            return unknown_model(name, version)

        methods = GrpcMethods(
            batched={path: route for service in services for path, route in service.grpc.items()},
            direct={**direct_methods(view), **control_methods(view), **self._health.methods(),
                    **{path: method for service in services for path, method in service.grpc_direct.items()}},
            streams={**self._health.streams(), **reflection_streams(names)},
            scored={path: route for service in services for path, route in service.grpc_streams.items()},
            closed={} if problem is None else {f"/{FRAUD_SERVICE}/{method}": problem for method in FRAUD_METHODS},
            slow=control_methods(view), no_model=no_model,
        )  # fmt: skip
        ledger = Ledger("grpc", self._metrics, self._access_log)
        return grpc_listener(settings.listen, self._lease.sockets["grpc"], methods, settings.limits, ledger)


def _endpoints(settings: Settings) -> list[Endpoint]:
    listen = settings.listen
    return [
        Endpoint("http", listen.host, listen.http_port),
        Endpoint("grpc", listen.host, listen.grpc_port, is_listening=is_native(listen)),
        Endpoint("metrics", listen.host, listen.metrics_port),
    ]


def _settle_down() -> None:
    """What a process that lives for days wants and a script does not."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except PermissionError:
            log.warning("running at niceness %d: set RAY_worker_niceness=0 where Ray is started", niceness)
