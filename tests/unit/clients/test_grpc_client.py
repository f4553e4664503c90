from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from headroom_client import (
    AsyncGrpcClient,
    ConnectionFailed,
    DeadlineExceeded,
    Decision,
    GrpcClient,
    HeadroomClientError,
    InvalidInput,
    ItemError,
    Overloaded,
    Reason,
    ServerTiming,
    TooLarge,
    Transaction,
)

from protos.headroom.fraud.v1 import fraud_pb2

Run = Callable[..., Any]
SENT_LATER_BY = 1.03
"""gRPC compresses headers: it may send a deadline it sent before when that is up to 3 % later; its own stays exact."""
REVIEW = fraud_pb2.ScoreResponse(transaction_id="t-1", decision=fraud_pb2.DECISION_KIND_REVIEW)


def answer(request: Any, context: grpc.ServicerContext) -> Any:
    return REVIEW


def test_score_sends_the_transaction_and_returns_the_decision(
    over_grpc: Run, grpc_server: Any, transaction: Transaction
) -> None:
    usual = grpc_server.script[0]

    def timed(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("server-timing", "queue;dur=0.1, score;dur=2"), ("x-request-id", "r-7")))
        return usual(request, context)

    grpc_server.script = [timed]
    assert over_grpc(grpc_server.target, lambda client: client.fraud.score(transaction)) == Decision(
        transaction_id="t-1",
        fraud_probability=0.25,
        decision="review",
        risk_level="medium",
        scores={"fraud_ensemble": 0.25},
        reasons=(Reason("amount", 12.5, 0.75, "the amount is unusual"),),
        degraded=("features",),
        model_version="3",
        server_timing=ServerTiming({"queue": 0.1, "score": 2.0}),
        request_id="r-7",
    )
    (request,) = grpc_server.seen
    assert request.transaction == fraud_pb2.Transaction(
        transaction_id="t-1",
        customer_id="c-1",
        terminal_id="m-1",
        amount=12.5,
        timestamp=1_700_000_000.5,
        currency="EUR",
    )


def test_deadline_headers_and_trace_context_travel(over_grpc: Run, grpc_server: Any, transaction: Transaction) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    over_grpc(
        grpc_server.target,
        lambda client: client.fraud.score(transaction, timeout_ms=20_000, traceparent=trace, request_id="mine"),
        headers={"Authorization": "Bearer key"},
    )
    (metadata,) = grpc_server.metadata
    assert (metadata["traceparent"], metadata["x-request-id"]) == (trace, "mine")
    assert metadata["authorization"] == "Bearer key"
    assert 0 < grpc_server.remaining_s[0] <= SENT_LATER_BY * 20


def test_a_refusal_is_retried_under_the_same_id_with_the_time_that_is_left(
    over_grpc: Run, grpc_server: Any, transaction: Transaction
) -> None:
    full = grpc_server.refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full", retry_after_ms="200", x_request_id="r-7"
    )
    draining = grpc_server.refusal(grpc.StatusCode.UNAVAILABLE, "draining", x_request_id="r-7")
    grpc_server.script = [full, draining, answer]
    decision = over_grpc(grpc_server.target, lambda client: client.fraud.score(transaction), timeout_ms=4_000)
    assert decision.decision == "review"
    assert len(grpc_server.seen) == 3
    assert SENT_LATER_BY * 4 >= grpc_server.remaining_s[0] > grpc_server.remaining_s[1] + 0.05
    assert len({metadata["x-request-id"] for metadata in grpc_server.metadata}) == 1


def test_a_refusal_that_stays_is_raised_with_its_wait(
    over_grpc: Run, grpc_server: Any, transaction: Transaction
) -> None:
    full = grpc_server.refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full", retry_after_ms="5000", x_request_id="r-7"
    )
    grpc_server.script = [full]
    with pytest.raises(Overloaded, match="queue is full") as raised:
        over_grpc(grpc_server.target, lambda client: client.fraud.score(transaction))
    assert (raised.value.retry_after_ms, raised.value.request_id) == (5_000, "r-7")
    assert len(grpc_server.seen) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TooLarge),
    ],
)
def test_the_callers_errors_and_deadlines_are_not_retried(
    over_grpc: Run, grpc_server: Any, transaction: Transaction, code: grpc.StatusCode, error: type[Exception]
) -> None:
    grpc_server.script = [grpc_server.refusal(code, "no", x_request_id="r-7"), answer]
    with pytest.raises(error, match="no"):
        over_grpc(grpc_server.target, lambda client: client.fraud.score(transaction))
    assert len(grpc_server.seen) == 1


def test_a_silent_server_is_left_at_the_deadline(over_grpc: Run, grpc_server: Any, transaction: Transaction) -> None:
    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        left = threading.Event()
        context.add_callback(left.set)
        left.wait(30)
        return REVIEW

    grpc_server.script = [hang]
    with pytest.raises(DeadlineExceeded) as raised:
        over_grpc(grpc_server.target, lambda client: client.fraud.score(transaction, timeout_ms=60, request_id="mine"))
    assert raised.value.request_id == "mine"
    assert len(grpc_server.seen) <= 1


def test_a_port_without_a_server_is_a_failed_connection(
    over_grpc: Run, unused_port: int, transaction: Transaction
) -> None:
    with pytest.raises(ConnectionFailed) as raised:
        over_grpc(f"127.0.0.1:{unused_port}", lambda client: client.fraud.score(transaction))
    assert raised.value.is_retryable


def test_a_batch_has_a_result_for_every_item(over_grpc: Run, grpc_server: Any, transaction: Transaction) -> None:
    error = fraud_pb2.ItemError(kind="invalid_input", message="amount is -1; allowed 0 to 1e9", field="amount")
    results = [fraud_pb2.ScoreResult(response=REVIEW), fraud_pb2.ScoreResult(error=error, transaction_id="t-2")]
    grpc_server.script = [lambda request, context: fraud_pb2.ScoreBatchResponse(results=results)]
    first, second = over_grpc(grpc_server.target, lambda client: client.fraud.score_batch([transaction, transaction]))
    assert (first.decision, first.transaction_id) == ("review", "t-1")
    assert second == ItemError("invalid_input", "amount is -1; allowed 0 to 1e9", "t-2", "amount")
    assert len(grpc_server.seen[0].transactions) == 2


def test_ready_is_the_health_services_answer_and_false_without_a_server(
    over_grpc: Run, grpc_server: Any, unused_port: int
) -> None:
    assert over_grpc(grpc_server.target, lambda client: client.ready()) is True
    grpc_server.health = b"\x08\x02"
    assert over_grpc(grpc_server.target, lambda client: client.ready()) is False
    assert over_grpc(f"127.0.0.1:{unused_port}", lambda client: client.ready()) is False


def test_one_client_serves_many_threads(grpc_server: Any, transaction: Transaction) -> None:
    with GrpcClient(grpc_server.target, timeout_ms=30_000) as client, ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(lambda _: client.fraud.score(transaction), range(64)))
    assert [decision.decision for decision in decisions] == ["review"] * 64


def test_an_async_client_without_a_running_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncGrpcClient()


def echo(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    """Answers in its own order: an error for every negative amount, at once; decisions at the end."""
    waiting = []
    for request in requests:
        if request.transaction.amount < 0:
            error = fraud_pb2.ItemError(kind="invalid_input", message="amount is negative", field="amount")
            yield fraud_pb2.ScoreResult(error=error, transaction_id=request.transaction.transaction_id)
        else:
            waiting.append(request.transaction.transaction_id)
    for transaction_id in reversed(waiting):
        scored = fraud_pb2.ScoreResponse(transaction_id=transaction_id, decision=fraud_pb2.DECISION_KIND_APPROVE)
        yield fraud_pb2.ScoreResult(response=scored, transaction_id=transaction_id)


def stream_sync(target: str, transactions: list[Transaction], **options: Any) -> list[Any]:
    with GrpcClient(target) as client:
        return list(client.fraud.score_stream(transactions, **options))


def stream_async(target: str, transactions: list[Transaction], **options: Any) -> list[Any]:
    async def feed() -> AsyncIterator[Transaction]:
        for transaction in transactions:
            yield transaction

    async def main() -> list[Any]:
        async with AsyncGrpcClient(target) as client:
            return [result async for result in client.fraud.score_stream(feed(), **options)]

    return asyncio.run(main())


def numbered(amounts: list[float]) -> list[Transaction]:
    return [
        Transaction(transaction_id=f"t-{n}", customer_id="c", terminal_id="m", amount=amount, timestamp=0)
        for n, amount in enumerate(amounts)
    ]


@pytest.mark.parametrize("stream", [stream_sync, stream_async])
def test_a_stream_gives_results_in_the_servers_order(stream: Run, grpc_server: Any) -> None:
    grpc_server.script = [echo]
    results = stream(grpc_server.target, numbered([1.0, 2.0, -1.0]), request_id="mine")
    assert [result.transaction_id for result in results] == ["t-2", "t-1", "t-0"]
    assert results[0] == ItemError("invalid_input", "amount is negative", "t-2", "amount")
    assert (results[1].decision, results[1].request_id) == ("approve", "mine")
    assert grpc_server.remaining_s[0] > 1e9


@pytest.mark.parametrize("stream", [stream_sync, stream_async])
def test_a_stream_has_a_deadline_only_when_it_is_given_one(stream: Run, grpc_server: Any) -> None:
    grpc_server.script = [echo]
    stream(grpc_server.target, numbered([1.0]), timeout_ms=30_000)
    assert 0 < grpc_server.remaining_s[0] <= SENT_LATER_BY * 30


@pytest.mark.parametrize("stream", [stream_sync, stream_async])
def test_a_stream_that_fails_is_raised_and_not_retried(stream: Run, grpc_server: Any) -> None:
    grpc_server.script = [grpc_server.refusal(grpc.StatusCode.UNAVAILABLE, "draining", x_request_id="r-7")]
    with pytest.raises(HeadroomClientError, match="draining") as raised:
        stream(grpc_server.target, numbered([1.0]))
    assert (raised.value.kind, raised.value.request_id) == ("not_ready", "r-7")
    assert len(grpc_server.seen) == 1


def test_closing_a_streams_iterator_cancels_it_at_the_server(grpc_server: Any) -> None:
    ended = threading.Event()

    def endless(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(ended.set)
        while context.is_active():
            yield fraud_pb2.ScoreResult(response=REVIEW)

    grpc_server.script = [endless]
    with GrpcClient(grpc_server.target) as client:
        results = client.fraud.score_stream(numbered([1.0]))
        assert isinstance(next(results), Decision)
        results.close()  # type: ignore[attr-defined]  # a generator
        assert ended.wait(10)
