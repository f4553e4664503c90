"""Whether the server says that it lives, is ready and what it serves, in the words of every protocol it speaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from server import Server

pytestmark = pytest.mark.e2e

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICES = ("headroom.fraud.v1.FraudService", "inference.GRPCInferenceService")


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live",
        "/v2/health/ready",
        "/-/healthz",
        "/v2/models/fraud/ready",
        "/v2/models/creditcard/ready",
        "/v2/models/fraud/versions/1/ready",
        "/v2/models/creditcard/versions/1/ready",
    ],
)
def test_health_is_200_without_a_body_and_head_agrees(server: Server, path: str) -> None:
    assert server.get(path) == (200, b"")
    assert server.call("HEAD", path, None)[:2] == (200, b"")


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v2/models/nope/ready", "nope"),
        ("/v2/models/fraud/versions/9/ready", "9"),
        ("/v2/models/creditcard/versions/9/ready", "9"),
        ("/v2/models/creditcard/versions/one/ready", "one"),
    ],
)
def test_a_model_or_version_nobody_serves_is_not_ready_and_the_answer_names_it(
    server: Server, path: str, named: str
) -> None:
    status, body = server.get(path)
    assert status == 400
    assert named in json.loads(body)["error"]


def test_routes_names_every_hot_path_as_ray_serve_would(server: Server) -> None:
    status, body = server.get("/-/routes")
    assert status == 200
    expected = {"/v1/fraud/score", "/v1/fraud/score:batch", "/v2/models/fraud/infer", "/v2/models/creditcard/infer"}
    assert expected <= set(json.loads(body))


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_grpc_health_says_serving(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING


def test_grpc_health_does_not_know_another_service(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_grpc_health_watch_says_serving_at_once_and_stays_open(channel: grpc.Channel, service: str) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert next(watch).status == SERVING
    ended = threading.Event()
    watch.add_callback(ended.set)
    assert not ended.wait(0.2)
    watch.cancel()


def test_grpc_health_watch_of_another_service_says_that_it_is_unknown(channel: grpc.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= listed


@pytest.mark.parametrize(
    ("service", "method", "request_type"),
    [
        (SERVICES[0], "Score", "headroom.fraud.v1.ScoreRequest"),
        (SERVICES[0], "ScoreBatch", "headroom.fraud.v1.ScoreBatchRequest"),
        (SERVICES[0], "ScoreStream", "headroom.fraud.v1.ScoreRequest"),
        (SERVICES[1], "ModelInfer", "inference.ModelInferRequest"),
        (SERVICES[1], "ServerReady", "inference.ServerReadyRequest"),
    ],
)
def test_reflection_describes_a_method_without_any_file_of_ours(
    channel: grpc.Channel, service: str, method: str, request_type: str
) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    described = pool.FindServiceByName(service).FindMethodByName(method)
    assert described.input_type.full_name == request_type
    assert pool.FindMessageTypeByName(request_type) is described.input_type
