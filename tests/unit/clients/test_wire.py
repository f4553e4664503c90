from __future__ import annotations

import json
from typing import Any

import pytest
from headroom_client import (
    ConnectionFailed,
    DeadlineExceeded,
    Decision,
    HeadroomClientError,
    InvalidInput,
    ItemError,
    NotReady,
    Overloaded,
    PipelineBudget,
    Reason,
    ServerTiming,
    StageBudget,
    TooLarge,
    Transaction,
    UnexpectedAnswer,
)
from headroom_client._proto import fraud_pb2
from headroom_client.errors import error_class
from headroom_client.wire import fraud_json, fraud_proto
from headroom_client.wire import grpc as grpc_wire
from headroom_client.wire import http as http_wire
from headroom_client.wire.operation import Reply
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import HeadroomError
from serve.ingress.status import GRPC_STATUS, HTTP_STATUS

TIMING = ServerTiming({"score": 0.4})
numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
decisions = st.builds(
    Decision,
    transaction_id=texts,
    fraud_probability=st.floats(0, 1),
    decision=st.sampled_from(["approve", "review", "decline"]),
    risk_level=st.sampled_from(["low", "medium", "high", "critical"]),
    scores=st.dictionaries(texts, numbers, max_size=4),
    reasons=st.lists(st.builds(Reason, texts, numbers, numbers, texts), max_size=3).map(tuple),
    degraded=st.lists(texts, max_size=3).map(tuple),
    model_version=texts,
    server_timing=st.just(TIMING),
    request_id=st.just("r-1"),
)
transactions = st.builds(
    Transaction,
    transaction_id=texts,
    customer_id=texts,
    terminal_id=texts,
    amount=numbers,
    timestamp=numbers,
    currency=st.none() | texts,
    channel=st.none() | texts,
    merchant_category=st.none() | texts,
    latitude=st.none() | numbers,
    longitude=st.none() | numbers,
)


def reply(body: bytes) -> Reply:
    return Reply(body, "r-1", TIMING)


def json_body(decision: Decision) -> dict[str, Any]:
    reasons = [{name: getattr(reason, name) for name in Reason.__match_args__} for reason in decision.reasons]
    names = ("transaction_id", "fraud_probability", "decision", "risk_level", "scores", "model_version")
    return {name: getattr(decision, name) for name in names} | {"reasons": reasons, "degraded": [*decision.degraded]}


def message(decision: Decision) -> fraud_pb2.ScoreResponse:
    kind = fraud_pb2.DecisionKind.Value(f"DECISION_KIND_{decision.decision.upper()}")
    return fraud_pb2.ScoreResponse(**json_body(decision) | {"decision": kind})


@given(decisions)
def test_a_decision_reads_the_same_from_json_and_from_protobuf(decision: Decision) -> None:
    assert fraud_json.SCORE.parse(reply(json.dumps(json_body(decision)).encode())) == decision
    assert fraud_proto.SCORE.parse(reply(message(decision).SerializeToString())) == decision


@given(transactions)
def test_a_transaction_says_the_same_in_json_and_in_protobuf(transaction: Transaction) -> None:
    sent = fraud_pb2.ScoreRequest.FromString(fraud_proto.SCORE.encode(transaction)).transaction
    assert json.loads(fraud_json.SCORE.encode(transaction)) == {
        field.name: getattr(sent, field.name)
        for field in fraud_pb2.Transaction.DESCRIPTOR.fields
        if not field.has_presence or sent.HasField(field.name)
    }


@given(st.lists(transactions, max_size=4))
def test_a_batch_keeps_its_order(batch: list[Transaction]) -> None:
    body = json.loads(fraud_json.SCORE_BATCH.encode(batch))["transactions"]
    sent = fraud_pb2.ScoreBatchRequest.FromString(fraud_proto.SCORE_BATCH.encode(batch)).transactions
    assert [item["transaction_id"] for item in body] == [item.transaction_id for item in sent]
    assert [item["transaction_id"] for item in body] == [item.transaction_id for item in batch]


@given(st.lists(decisions, max_size=3))
def test_a_batch_answer_mixes_decisions_and_errors(scored: list[Decision]) -> None:
    bad = ItemError("invalid_input", "amount is -1; allowed 0 to 1e9", "t-9", "amount")
    nameless = ItemError("invalid_input", "transaction_id is missing")
    error = {"kind": bad.kind, "message": bad.message, "field": "amount"}
    results = [*map(json_body, scored), {"transaction_id": "t-9", "error": error}]
    results.append({"error": {"kind": nameless.kind, "message": nameless.message}})
    assert fraud_json.SCORE_BATCH.parse(reply(json.dumps({"results": results}).encode())) == [*scored, bad, nameless]
    answer = fraud_pb2.ScoreBatchResponse(
        results=[
            *(fraud_pb2.ScoreResult(response=message(decision)) for decision in scored),
            fraud_pb2.ScoreResult(error=fraud_pb2.ItemError(**error), transaction_id="t-9"),
            fraud_pb2.ScoreResult(error=fraud_pb2.ItemError(kind=nameless.kind, message=nameless.message)),
        ]
    )
    assert fraud_proto.SCORE_BATCH.parse(reply(answer.SerializeToString())) == [*scored, bad, nameless]


@given(st.binary(max_size=40) | st.sampled_from([b"[]", b"null", b"{}", b'{"results":3}', b'{"results":[1]}']))
def test_any_other_body_is_an_unexpected_answer(body: bytes) -> None:
    for operation in (fraud_json.SCORE, fraud_json.SCORE_BATCH, http_wire.BUDGETS):
        with pytest.raises(UnexpectedAnswer, match=operation.path) as raised:
            operation.parse(reply(body))
        assert raised.value.request_id == "r-1"


def test_a_protobuf_decision_without_a_kind_is_an_unexpected_answer() -> None:
    for operation in (fraud_proto.SCORE, fraud_proto.SCORE_STREAM):
        with pytest.raises(UnexpectedAnswer):
            operation.parse(reply(b""))
    with pytest.raises(UnexpectedAnswer):
        fraud_proto.SCORE.parse(reply(b"\xff\xff"))


def http_error(status: int, body: object, **headers: str) -> HeadroomClientError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    outcome = http_wire.http_outcome(status, {k.replace("_", "-"): v for k, v in headers.items()}, raw, "sent")
    assert isinstance(outcome, HeadroomClientError)
    return outcome


def test_an_http_error_carries_everything_the_server_said() -> None:
    body = {"error": "amount is -1; allowed 0 to 1e9", "kind": "invalid_input", "field": "amount"}
    error = http_error(400, body, x_request_id="r-7")
    assert type(error) is InvalidInput
    assert (str(error), error.kind, error.field) == ("amount is -1; allowed 0 to 1e9", "invalid_input", "amount")
    assert (error.request_id, error.retry_after_ms, error.is_retryable) == ("r-7", None, False)


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({"retry_after": "2"}, 2_000.0),
        ({"retry_after": "0.5"}, 500.0),
        ({"retry_after": "1", "retry_after_ms": "40"}, 40.0),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "1", "retry_after_ms": "nan"}, 1_000.0),
        ({}, None),
    ],
)
def test_the_wait_is_read_from_the_finer_header_first(headers: dict[str, str], wait_ms: float | None) -> None:
    error = http_error(429, {"error": "queue is full", "kind": "overloaded"}, **headers)
    assert (type(error), error.retry_after_ms, error.is_retryable) == (Overloaded, wait_ms, True)


@pytest.mark.parametrize(
    ("status", "kind", "is_retryable"),
    [
        (502, "dependency_failed", False),
        (503, "not_ready", True),
        (504, "deadline_exceeded", False),
        (302, "unexpected_answer", False),
    ],
)
@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[1]", b'{"error": 3, "kind": []}'])
def test_an_answer_that_is_not_the_servers_goes_by_its_status(
    status: int, kind: str, is_retryable: bool, body: bytes
) -> None:
    error = http_error(status, body)
    assert (error.kind, error.is_retryable, error.request_id) == (kind, is_retryable, "sent")
    assert str(status) in str(error)


def test_a_kind_of_a_newer_server_is_kept() -> None:
    error = http_error(409, {"error": "weights differ", "kind": "conflict"})
    assert (type(error), error.kind) == (HeadroomClientError, "conflict")


def test_every_kind_of_the_server_has_a_class_of_its_own() -> None:
    kinds = {cls.kind for cls in HeadroomError.__subclasses__()}
    assert kinds == HTTP_STATUS.keys() == GRPC_STATUS.keys()
    assert {error_class(kind).default_kind for kind in kinds} == kinds


@pytest.mark.parametrize(
    ("code", "metadata", "expected", "is_retryable"),
    [
        ("RESOURCE_EXHAUSTED", {"retry-after-ms": "40", "x-request-id": "r-7"}, Overloaded, True),
        ("RESOURCE_EXHAUSTED", {"x-request-id": "r-7"}, TooLarge, False),
        ("RESOURCE_EXHAUSTED", {}, TooLarge, False),
        ("UNAVAILABLE", {"x-request-id": "r-7"}, NotReady, True),
        ("UNAVAILABLE", {}, ConnectionFailed, True),
        ("DEADLINE_EXCEEDED", {}, DeadlineExceeded, False),
        ("INVALID_ARGUMENT", {"error-field": "amount"}, InvalidInput, False),
        ("DATA_LOSS", {}, UnexpectedAnswer, False),
    ],
)
def test_a_grpc_status_is_read_with_its_metadata(
    code: str, metadata: dict[str, str], expected: type[HeadroomClientError], is_retryable: bool
) -> None:
    error = grpc_wire.grpc_error(code, "details", metadata, "sent")
    assert (type(error), error.is_retryable) == (expected, is_retryable)
    assert (str(error), error.request_id) == ("details", metadata.get("x-request-id", "sent"))
    assert error.field == metadata.get("error-field")
    assert error.retry_after_ms == (40.0 if "retry-after-ms" in metadata else None)


def test_a_grpc_error_without_details_names_its_status_and_an_error_kind_wins() -> None:
    error = grpc_wire.grpc_error("UNAVAILABLE", "", {"error-kind": "dependency_failed", "x-request-id": "r"}, "sent")
    assert (error.kind, error.is_retryable) == ("dependency_failed", True)
    assert "UNAVAILABLE" in str(error)


def test_budgets_become_values_and_unknown_fields_are_ignored() -> None:
    stage = {"budget_ms": None, "p50_ms": 0.1, "p95_ms": 0.2, "p99_ms": 0.3, "count": 7, "later": 1}
    counts = {"requests": 7, "met": 6, "missed": 1, "degraded": 2, "refused": 0}
    quantiles = {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    body = {"budget_ms": 50, "window_s": 60, **counts, **quantiles, "stages": {"score": stage}}
    parsed = http_wire.BUDGETS.parse(reply(json.dumps({"pipelines": {"fraud": body}}).encode()))
    score = StageBudget(budget_ms=None, p50_ms=0.1, p95_ms=0.2, p99_ms=0.3, count=7)
    assert parsed == {"fraud": PipelineBudget(50, 60, 7, 6, 1, 2, 0, None, None, None, {"score": score})}


def test_the_grpc_paths_are_those_of_the_service() -> None:
    service = fraud_pb2.DESCRIPTOR.services_by_name["FraudService"]
    operations = (fraud_proto.SCORE, fraud_proto.SCORE_BATCH, fraud_proto.SCORE_STREAM)
    assert {op.path for op in operations} <= {f"/{service.full_name}/{method.name}" for method in service.methods}
