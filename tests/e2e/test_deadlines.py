"""Deadlines from every source: answers come on time or not at all, and what is wrong with a deadline is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from server import Server, wait_until
from transactions import transaction
from tritonclient.utils import InferenceServerException

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from protos.headroom.fraud.v1.fraud_pb2_grpc import FraudServiceStub

pytestmark = pytest.mark.e2e

ON_TIME_S = 0.5
"""Far over what a deadline of under a millisecond takes, far under any other time limit on the way."""
NUM_ROWS = 4096


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[FraudServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield FraudServiceStub(channel)


def request(**changes: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(transaction=pb.Transaction(**transaction(**changes)))


def test_a_deadline_that_cannot_be_met_is_answered_on_time(server: Server) -> None:
    server.post("/v1/fraud/score", transaction())
    for timeout_ms in ("0.001", "0.01", "0.1"):
        began_s = time.monotonic()
        status, answer, headers = server.post("/v1/fraud/score", transaction(), X_Request_Timeout_Ms=timeout_ms)
        assert time.monotonic() - began_s < ON_TIME_S
        assert status in (429, 504), answer
        assert answer["kind"] == {429: "overloaded", 504: "deadline_exceeded"}[status]
        if status == 429:
            assert answer["reason"] == "budget"
            assert int(headers["retry-after"]) >= 0


def test_a_batch_that_is_too_large_for_its_deadline_is_answered_on_time_too(server: Server) -> None:
    body = {"transactions": [transaction() for _ in range(1024)]}
    began_s = time.monotonic()
    status, answer, _ = server.post("/v1/fraud/score:batch", body, X_Request_Timeout_Ms="0.5")
    assert status in (429, 504), answer
    assert time.monotonic() - began_s < ON_TIME_S


def test_a_deadline_longer_than_the_budget_does_not_stretch_it(server: Server) -> None:
    status, answer, _ = server.post("/v1/fraud/score", transaction(), X_Request_Timeout_Ms="3600000")
    assert status in (200, 429, 504), answer


def test_a_late_request_is_counted_as_missed_or_refused_and_nothing_stays_in_flight(server: Server) -> None:
    def bad_ends() -> float:
        names = ("headroom_budget_missed_total", "headroom_budget_refused_total")
        return sum(server.metric(name, pipeline="fraud") for name in names)

    before, in_flight = bad_ends(), server.metric("headroom_requests_in_flight")
    for _ in range(20):
        server.post("/v1/fraud/score", transaction(), X_Request_Timeout_Ms="0.001")
    assert bad_ends() == before + 20
    wait_until(lambda: server.metric("headroom_requests_in_flight") <= in_flight, 5, "nothing stays in flight")


def test_the_next_request_is_answered_in_full_after_a_late_one(server: Server) -> None:
    server.post("/v1/fraud/score", transaction(), X_Request_Timeout_Ms="0.001")
    status, answer, _ = server.post("/v1/fraud/score", transaction())
    assert (status, answer["degraded"]) == (200, [])


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "ten", "", "3600001", "1e400", "1,2", "0x10"])
@pytest.mark.parametrize("path", ["/v1/fraud/score", "/v2/models/creditcard/infer", "/v2/health/live"])
def test_a_wrong_timeout_is_400_and_names_the_header(server: Server, path: str, value: str) -> None:
    method = "GET" if path.endswith("live") else "POST"
    status, body, _ = server.call(method, path, b"{}" if method == "POST" else None, {"X-Request-Timeout-Ms": value})
    assert status == 400
    assert b"X-Request-Timeout-Ms" in body
    assert b"allowed" in body


def test_a_grpc_deadline_that_cannot_be_met_is_answered_on_time(stub: FraudServiceStub) -> None:
    sent = pb.ScoreBatchRequest(transactions=[request().transaction for _ in range(1024)])
    began_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as late:
        stub.ScoreBatch(sent, timeout=0.002)
    assert time.monotonic() - began_s < ON_TIME_S
    assert late.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("method", ["Score", "ScoreBatch"])
def test_a_grpc_timeout_header_that_cannot_be_met_is_answered_by_the_server(
    stub: FraudServiceStub, method: str
) -> None:
    sent = request() if method == "Score" else pb.ScoreBatchRequest(transactions=[request().transaction] * 64)
    with pytest.raises(grpc.RpcError) as late:
        getattr(stub, method)(sent, timeout=10, metadata=(("x-request-timeout-ms", "0.001"),))
    code = late.value.code()
    assert code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    kinds = {"DEADLINE_EXCEEDED": "deadline_exceeded", "RESOURCE_EXHAUSTED": "overloaded"}
    assert dict(late.value.trailing_metadata())["error-kind"] == kinds[code.name]


def test_a_stream_s_messages_each_meet_its_deadline_or_say_so(stub: FraudServiceStub) -> None:
    sent = [request() for _ in range(20)]
    results = list(stub.ScoreStream(iter(sent), timeout=10, metadata=(("x-request-timeout-ms", "0.001"),)))
    assert {result.transaction_id for result in results} == {one.transaction.transaction_id for one in sent}
    assert {result.error.kind for result in results} <= {"deadline_exceeded", "overloaded"}


@pytest.mark.parametrize(
    "method", ["headroom.fraud.v1.FraudService/Score", "inference.GRPCInferenceService/ServerLive"]
)
def test_a_wrong_timeout_over_grpc_is_invalid_argument_and_names_it(server: Server, method: str) -> None:
    before = server.metric("headroom_requests_in_flight")
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{method}")(b"", timeout=10, metadata=(("x-request-timeout-ms", "-5"),))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "X-Request-Timeout-Ms" in refused.value.details()
    assert dict(refused.value.trailing_metadata())["x-request-id"]
    wait_until(lambda: server.metric("headroom_requests_in_flight") <= before, 5, "nothing stays in flight")


def rows(module: Any, num: int) -> Any:
    tensor = module.InferInput("input__0", [num, 30], "FP32")
    tensor.set_data_from_numpy(np.zeros((num, 30), np.float32))
    return [tensor]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_the_timeout_parameter_of_the_protocol_is_kept_over_http(server: Server, compression: str | None) -> None:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        client.infer("creditcard", rows(tritonclient.http, NUM_ROWS))
        with pytest.raises(InferenceServerException) as late:
            client.infer("creditcard", rows(tritonclient.http, NUM_ROWS), timeout=1,
                         request_compression_algorithm=compression)  # fmt: skip
    assert late.value.status() in ("429", "504")


def test_the_timeout_parameter_of_the_protocol_is_kept_over_grpc(server: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.infer("creditcard", rows(tritonclient.grpc, NUM_ROWS))
        with pytest.raises(InferenceServerException) as late:
            client.infer("creditcard", rows(tritonclient.grpc, NUM_ROWS), timeout=1)
    assert late.value.status() in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")


def test_the_client_timeout_of_tritonclient_ends_the_call(server: Server) -> None:
    many = rows(tritonclient.grpc, NUM_ROWS)
    late = pytest.raises(InferenceServerException, match=r"Deadline Exceeded|no answer within")  # whoever is first
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client, late:
        client.infer("creditcard", many, client_timeout=0.0005)
