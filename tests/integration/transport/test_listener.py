"""The listener on the native transport: which one serves, its certificates, what it counts, and how it ends."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest

from serve.batching.arrival import Arrival, Route
from serve.context import RequestContext
from serve.ingress import grpc_listener
from serve.ingress.grpc_aio import AioGrpcListener
from serve.ingress.grpc_health import Health
from serve.ingress.grpc_methods import GrpcMethods, InferRoutes
from serve.ingress.grpc_native import NativeGrpcListener
from serve.ingress.ledger import Ledger
from serve.ingress.wire.infer_codecs import MODEL_INFER
from serve.observability.families import CONNECTIONS, REJECTIONS, REQUESTS
from serve.observability.logs import AccessLog
from serve.observability.metrics import Metrics
from serve.settings import GrpcTls, Limits, Listen, SettingsError
from tests.integration.transport.test_tls import presented_by, self_signed
from tests.redis_server import until

ECHO = "/test.Echo/Echo"
WAIT_S = 20


@contextmanager
def listening(
    folder: Path, methods: GrpcMethods, limits: Limits | None = None, **listen: object
) -> Iterator[tuple[grpc_listener.GrpcListener, str, Metrics]]:
    """A listener, its target, and what it counts into."""
    metrics = Metrics.open(folder / "metrics", version="0")
    access_log = AccessLog(folder / "access.log", max_lines_per_s=0)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.setblocking(False)
        port = bound.getsockname()[1]
        settings = Listen.model_validate({"grpc_port": port, **listen})
        ledger = Ledger("grpc", metrics, access_log)
        listener = grpc_listener.grpc_listener(settings, bound, methods, limits or Limits(), ledger)
        listener.start()
        try:
            yield listener, f"127.0.0.1:{port}", metrics
        finally:
            listener.drain(time.monotonic_ns() + 500_000_000)
            metrics.close()


class SlowCodec:
    endpoint = "ModelInfer"

    def count_items(self, payload: bytes) -> int:
        return 1

    def timeout_us(self, payload: bytes) -> int | None:
        return None


class NeverRuns:
    """Takes in everything, and never has an answer."""

    def push(self, arrivals: Sequence[Arrival], now_ns: int) -> list[object]:
        return []

    def room(self, budget_ms: float) -> tuple[int, int]:
        return 16, 16

    def dispatch(self, again: object) -> bool:
        return False


def echo() -> GrpcMethods:
    return GrpcMethods(batched={}, direct={ECHO: lambda payload, _: payload})


def test_the_native_transport_serves_where_it_is_built_and_grpc_aio_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(tmp_path, echo()) as (listener, _, _):
        assert isinstance(listener, NativeGrpcListener)
    monkeypatch.setattr(grpc_listener, "why_unavailable", lambda: "it is not built")
    assert not grpc_listener.is_native(Listen())
    with pytest.raises(SettingsError, match="grpc_transport is native, but it is not built"):
        grpc_listener.is_native(Listen(grpc_transport="native"))
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        settings = Listen(grpc_port=reserved.getsockname()[1])
        metrics = Metrics.open(tmp_path / "m", version="0")
        ledger = Ledger("grpc", metrics, AccessLog(tmp_path / "log", max_lines_per_s=0))
        listener = grpc_listener.grpc_listener(settings, reserved, echo(), Limits(), ledger)
        assert isinstance(listener, AioGrpcListener)
        metrics.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_are_looked_at_and_replaced(tmp_path: Path) -> None:
    (certificate, key), second = self_signed(tmp_path, "server"), self_signed(tmp_path, "second")
    tls = {"certificate": str(certificate), "key": str(key)}
    with listening(tmp_path, echo(), grpc_tls=tls) as (listener, target, _):
        port = int(target.rpartition(":")[2])
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(target, credentials) as channel:
            assert channel.unary_unary(ECHO)(b"x", timeout=WAIT_S) == b"x"
        first = presented_by(port)
        listener.check()
        assert presented_by(port) == first
        shutil.copy(second[0], certificate)
        listener.check()  # the key does not fit: nothing changes
        assert presented_by(port) == first
        shutil.copy(second[1], key)
        listener.check()
        assert presented_by(port) != first


def test_wrong_certificates_are_a_wrong_setting(tmp_path: Path) -> None:
    wrong = GrpcTls(certificate="/none.pem", key="/none.key").model_dump()
    with (
        pytest.raises(SettingsError, match=r"grpc_tls: certificate /none.pem cannot be used"),
        listening(tmp_path, echo(), grpc_tls=wrong),
    ):
        pass


def test_watchers_hear_of_the_end_and_do_not_hold_it_up(tmp_path: Path) -> None:
    health = Health(("test.Echo",))
    methods = GrpcMethods(batched={}, direct=health.methods(), streams=health.streams())
    with listening(tmp_path, methods) as (_, target, _), grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service="test.Echo")).status == 1
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="none"))
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=WAIT_S)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        health.shut_down()
        assert [answer.status for answer in watched] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def test_connections_are_counted_and_those_turned_away_too(tmp_path: Path) -> None:
    def shown(listener: grpc_listener.GrpcListener, metrics: Metrics) -> tuple[float, float]:
        listener.check()
        values = metrics.snapshot().values_of
        return values(CONNECTIONS.name).get(("grpc",), 0), values(REJECTIONS.name).get(("grpc", "connections"), 0)

    with listening(tmp_path, echo(), limits=Limits(max_connections=1)) as (listener, target, metrics):
        with grpc.insecure_channel(target) as channel:
            assert channel.unary_unary(ECHO)(b"x", timeout=WAIT_S) == b"x"
            host, _, port = target.partition(":")
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as one_more:
                assert one_more.recv(1) == b""
            assert shown(listener, metrics) == (1, 1)
        until(lambda: shown(listener, metrics) == (0, 1), "the connection is gone, the refusal stays counted")


def test_a_model_nobody_serves_is_not_found_though_none_is_loaded(tmp_path: Path) -> None:
    with listening(tmp_path, echo()) as (_, target, _), grpc.insecure_channel(target) as channel:
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary(MODEL_INFER)(ModelInferRequest(model_name="m").SerializeToString(), timeout=WAIT_S)
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        assert "Request for unknown model: 'm'" in unknown.value.details()


def test_a_message_whose_model_comes_last_has_its_models_budget(tmp_path: Path) -> None:
    """Which only Python sees: every client writes the name first."""
    recorded = Metrics.open(tmp_path / "of the model", version="0")
    recorder = recorded.pipeline("m", (), budget_ms=200.0, stage_budgets_ms={})
    never = Route(SlowCodec(), NeverRuns(), 200.0, recorder, "m")  # type: ignore[arg-type]
    methods = GrpcMethods(batched={}, direct={}, models={("m", ""): InferRoutes(never, never)})
    named, identified = ModelInferRequest(model_name="m"), ModelInferRequest(id="7")
    with listening(tmp_path, methods) as (_, target, _), grpc.insecure_channel(target) as channel:
        for message in (named.SerializeToString() + identified.SerializeToString(),
                        identified.SerializeToString() + named.SerializeToString()):  # fmt: skip
            with pytest.raises(grpc.RpcError) as late:
                channel.unary_unary(MODEL_INFER)(message, timeout=WAIT_S)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert late.value.details() == "no answer within the 200.0 ms allowed"
    recorded.close()


def test_the_kinds_of_events_are_those_of_the_extension_module() -> None:
    from kernels.transport import EventKind, _transport

    assert {kind.name.lower(): kind.value for kind in EventKind} == _transport.EVENT_KINDS


def test_what_never_reached_python_is_counted_and_nothing_stays_in_flight(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def block(payload: bytes, _: RequestContext) -> bytes:
        entered.set()
        release.wait(WAIT_S)
        return payload

    with listening(tmp_path, GrpcMethods(batched={}, direct={ECHO: block})) as (_, target, metrics):
        with grpc.insecure_channel(target) as channel:
            call = channel.unary_unary(ECHO)
            first = call.future(b"1", timeout=WAIT_S)
            entered.wait(WAIT_S)
            late = call.future(b"2", timeout=0.1)  # waits in the transport meanwhile
            assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            release.set()
            assert first.result(WAIT_S) == b"1"
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/none/None")(b"", timeout=WAIT_S)

        def counted() -> dict[tuple[str, ...], float]:
            return metrics.snapshot().values_of(REQUESTS.name)

        def is_counted_once() -> bool:
            found = counted()
            late = found.pop(("grpc", "Echo", "4"), 0) + found.pop(("grpc", "Echo", "1"), 0)  # whichever came first
            return late == 1 and found == {("grpc", "Echo", "0"): 1, ("grpc", "unknown", "12"): 1}

        until(is_counted_once, "each call is counted once")
        assert metrics.in_flight("grpc")[0] == 0
