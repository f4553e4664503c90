"""Fraud over gRPC with plain grpcio and our .proto: unary, batch, bidirectional stream, metadata, deadlines."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from server import BUDGET_MS, Server, wait_until
from transactions import new_id, transaction

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from protos.headroom.fraud.v1.fraud_pb2_grpc import FraudServiceStub

pytestmark = pytest.mark.e2e

STAGES = {"queue", "decode", "fetch_features", "assemble_row", "score", "explain", "decide"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WAIT_S = 10


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[FraudServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield FraudServiceStub(channel)


def request(**changes: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(transaction=pb.Transaction(**transaction(**changes)))


def trailing(call: Any) -> dict[str, str]:
    return dict(call.trailing_metadata())


def test_a_unary_call_answers_with_ids_and_stage_times_in_the_trailing_metadata(stub: FraudServiceStub) -> None:
    sent = request(currency="EUR", latitude=48.1, longitude=11.6)
    answer, call = stub.Score.with_call(
        sent, timeout=WAIT_S, metadata=(("x-request-id", "order-17"), ("traceparent", TRACE))
    )
    assert answer.transaction_id == sent.transaction.transaction_id
    assert 0 <= answer.fraud_probability <= 1
    assert answer.decision != pb.DECISION_KIND_UNSPECIFIED
    assert answer.risk_level in ("low", "medium", "high", "critical")
    assert set(answer.scores) == {"xgboost", "lightgbm", "isolation_forest", "neural_network"}
    assert answer.model_version == "fraud_ensemble:1"
    found = trailing(call)
    assert (found["x-request-id"], found["traceparent"]) == ("order-17", TRACE)
    times_ms = dict(re.findall(r"(\w+);dur=([\d.]+)", found["server-timing"]))
    assert set(times_ms) >= STAGES
    assert 0 < sum(map(float, times_ms.values())) < BUDGET_MS


def test_a_repeat_returns_the_stored_decision_by_either_protocol(server: Server, stub: FraudServiceStub) -> None:
    sent = transaction(amount=3333.0)
    message = pb.ScoreRequest(transaction=pb.Transaction(**sent))
    over_grpc = stub.Score(message, timeout=WAIT_S)
    assert stub.Score(message, timeout=WAIT_S) == over_grpc
    over_http = server.post("/v1/fraud/score", sent)[1]
    assert over_http["fraud_probability"] == over_grpc.fraud_probability
    assert [reason["text"] for reason in over_http["reasons"]] == [reason.text for reason in over_grpc.reasons]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": -1.0}, "transaction.amount"),
        ({"amount": float("nan")}, "transaction.amount"),
        ({"amount": float("inf")}, "transaction.amount"),
        ({"amount": 1e300}, "transaction.amount"),
        ({"timestamp": 0.0}, "transaction.timestamp"),
        ({"timestamp": float("nan")}, "transaction.timestamp"),
        ({"timestamp": float("-inf")}, "transaction.timestamp"),
        ({"timestamp": 4e10}, "transaction.timestamp"),
        ({"transaction_id": ""}, "transaction.transaction_id"),
        ({"customer_id": "x" * 97}, "transaction.customer_id"),
        ({"currency": "eur"}, "transaction.currency"),
        ({"latitude": 90.5}, "transaction.latitude"),
        ({"longitude": float("nan")}, "transaction.longitude"),
    ],
)
def test_a_wrong_field_is_invalid_argument_and_named(
    stub: FraudServiceStub, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Score(request(**changes), timeout=WAIT_S, metadata=(("x-request-id", "order-18"),))
    error = refused.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field} is ")
    assert "allowed" in error.details()
    found = trailing(error)
    assert (found["error-kind"], found["error-field"]) == ("invalid_input", field)
    assert found["x-request-id"] == "order-18"


def test_each_item_of_a_batch_has_its_own_result_or_error(stub: FraudServiceStub) -> None:
    good, bad, also_good = transaction(), transaction(amount=-1.0), transaction()
    late = transaction(timestamp=4e10)
    answer = stub.ScoreBatch(
        pb.ScoreBatchRequest(transactions=[pb.Transaction(**one) for one in (good, bad, also_good, late)]),
        timeout=WAIT_S,
    )
    assert [result.WhichOneof("result") for result in answer.results] == ["response", "error", "response", "error"]
    assert [result.transaction_id for result in answer.results] == [
        one["transaction_id"] for one in (good, bad, also_good, late)
    ]
    assert [answer.results[i].error.field for i in (1, 3)] == ["transactions[1].amount", "transactions[3].timestamp"]


@pytest.mark.parametrize("num", [0, 1025])
def test_a_batch_of_none_or_too_many_is_refused_as_a_whole(stub: FraudServiceStub, num: int) -> None:
    message = pb.ScoreBatchRequest(transactions=[pb.Transaction(transaction_id="t")] * num)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ScoreBatch(message, timeout=WAIT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{num} items; allowed 1 to 1024" in refused.value.details()


def test_a_stream_answers_every_message_and_errors_come_in_band(stub: FraudServiceStub) -> None:
    """At most 32 wait at a time, which no budget is too short for. The client closes its side after the last one; the
    stream then ends by itself.
    """
    num, every = 1000, 10
    sent = [request(amount=-1.0 if i % every == 0 else 20.0 + i) for i in range(num)]
    may_send = threading.Semaphore(32)

    def paced() -> Iterator[pb.ScoreRequest]:
        for one in sent:
            assert may_send.acquire(timeout=WAIT_S)
            yield one

    results = []
    for result in stub.ScoreStream(paced(), timeout=60):
        results.append(result)
        may_send.release()
    by_id = {result.transaction_id: result for result in results}
    assert len(results) == len(by_id) == num
    assert set(by_id) == {one.transaction.transaction_id for one in sent}
    failed = [by_id[one.transaction.transaction_id].error for one in sent[::every]]
    assert {(error.kind, error.field) for error in failed} == {("invalid_input", "transaction.amount")}
    assert sum(result.HasField("response") for result in results) == num - num // every


def test_an_empty_stream_ends_without_an_answer(stub: FraudServiceStub) -> None:
    assert list(stub.ScoreStream(iter(()), timeout=WAIT_S)) == []


def test_a_stream_answers_before_the_client_has_closed_its_side(stub: FraudServiceStub) -> None:
    may_send = threading.Semaphore(1)

    def one_at_a_time() -> Iterator[pb.ScoreRequest]:
        for _ in range(20):
            assert may_send.acquire(timeout=WAIT_S)
            yield request()

    answered = 0
    for result in stub.ScoreStream(one_at_a_time(), timeout=60):
        assert result.HasField("response")
        answered += 1
        may_send.release()
    assert answered == 20


def test_a_client_that_cancels_its_stream_leaves_nothing_in_flight(server: Server, stub: FraudServiceStub) -> None:
    enough = threading.Event()
    before = server.metric("headroom_requests_in_flight")

    def endless() -> Iterator[pb.ScoreRequest]:
        while not enough.is_set():
            yield request()

    call = stub.ScoreStream(endless(), timeout=60)
    for _ in range(50):
        assert next(call).transaction_id
    call.cancel()
    enough.set()
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: server.metric("headroom_requests_in_flight") <= before, WAIT_S, "nothing stays in flight")
    assert stub.Score(request(), timeout=WAIT_S).transaction_id


def test_a_stream_that_is_not_read_does_not_grow_the_server(server: Server) -> None:
    """Reading stops while answers wait, so the client's messages pile up on its own side."""
    enough = threading.Event()

    def scored() -> float:
        return server.metric("headroom_requests_total", protocol="grpc", endpoint="FraudService/ScoreStream")

    def flood() -> Iterator[pb.ScoreRequest]:
        while not enough.is_set():
            yield request(customer_id="c" * 96, terminal_id="t" * 96)

    first, before = scored(), server.metric("headroom_requests_in_flight")
    small_windows = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16 << 10))
    with grpc.insecure_channel(server.grpc, options=small_windows) as channel:
        call = FraudServiceStub(channel).ScoreStream(flood(), timeout=60)
        seen = [scored()]
        wait_until(lambda: seen.append(scored()) or seen[-1] == seen[-2] > first, 20, "the server stops reading")
        assert seen[-1] - first < 10_000
        call.cancel()
        enough.set()
    wait_until(lambda: server.metric("headroom_requests_in_flight") <= before, WAIT_S, "nothing stays in flight")


def test_an_unknown_method_is_unimplemented(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/headroom.fraud.v1.FraudService/Nope")(b"", timeout=WAIT_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_windows_move_over_grpc_as_over_http(server: Server, stub: FraudServiceStub) -> None:
    """A transaction by one protocol is seen by the next one by the other."""
    mixed = {"customer_id": new_id("customer"), "terminal_id": new_id("terminal"), "amount": 500.0}
    alone = {"customer_id": new_id("customer"), "terminal_id": new_id("terminal"), "amount": 500.0}
    assert server.post("/v1/fraud/score", transaction(**mixed))[0] == 200
    second = stub.Score(request(**mixed), timeout=WAIT_S)
    first = stub.Score(request(**alone), timeout=WAIT_S)
    assert second.fraud_probability != first.fraud_probability
