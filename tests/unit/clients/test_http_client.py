from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from headroom_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    Decision,
    InvalidInput,
    ItemError,
    Overloaded,
    Reason,
    ServerTiming,
    Transaction,
)

Run = Callable[..., Any]


def test_score_sends_the_transaction_and_returns_the_decision(
    over_http: Run, http_server: Any, transaction: Transaction
) -> None:
    http_server.script = [
        http_server.answer(headers={"x-request-id": "r-7", "server-timing": "queue;dur=0.1, score;dur=2"})
    ]
    decision = over_http(http_server.url, lambda client: client.fraud.score(transaction))
    assert decision == Decision(
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
    (seen,) = http_server.seen
    assert seen.path == "/v1/fraud/score"
    assert seen.body == {
        "transaction_id": "t-1",
        "customer_id": "c-1",
        "terminal_id": "m-1",
        "amount": 12.5,
        "timestamp": 1_700_000_000.5,
        "currency": "EUR",
    }


def test_the_fields_can_be_given_without_a_transaction(over_http: Run, http_server: Any) -> None:
    fields: dict[str, Any] = {
        "transaction_id": "t",
        "customer_id": "c",
        "terminal_id": "m",
        "amount": 1,
        "timestamp": 2,
    }
    over_http(http_server.url, lambda client: client.fraud.score(**fields, timeout_ms=500, request_id="mine"))
    (seen,) = http_server.seen
    assert seen.body == fields
    assert seen.headers["x-request-id"] == "mine"
    assert 0 < float(seen.headers["x-request-timeout-ms"]) <= 500


def test_a_transaction_beside_fields_is_refused(over_http: Run, http_server: Any, transaction: Transaction) -> None:
    with pytest.raises(TypeError, match="a Transaction and also amount"):
        over_http(http_server.url, lambda client: client.fraud.score(transaction, amount=3.0))
    assert http_server.seen == []


def test_options_headers_and_trace_context_travel(over_http: Run, http_server: Any, transaction: Transaction) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    use = lambda client: client.fraud.score(transaction, traceparent=trace)  # noqa: E731
    over_http(http_server.url, use, headers={"Authorization": "Bearer key"})
    (seen,) = http_server.seen
    assert (seen.headers["traceparent"], seen.headers["authorization"]) == (trace, "Bearer key")
    assert len(seen.headers["x-request-id"]) == 32


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_retried_under_the_same_id_with_the_time_that_is_left(
    over_http: Run, http_server: Any, transaction: Transaction, status: int
) -> None:
    refused = http_server.answer(status, {"error": "queue is full", "kind": "overloaded"}, {"Retry-After-Ms": "20"})
    http_server.script = [refused, refused, http_server.answer()]
    decision = over_http(http_server.url, lambda client: client.fraud.score(transaction), timeout_ms=10_000)
    assert decision.decision == "review"
    left_ms = [float(seen.headers["x-request-timeout-ms"]) for seen in http_server.seen]
    assert len(left_ms) == 3
    assert left_ms[0] <= 10_000
    assert left_ms[1] <= left_ms[0] - 20
    assert left_ms[2] <= left_ms[1] - 20
    assert len({seen.headers["x-request-id"] for seen in http_server.seen}) == 1


def test_a_reset_connection_is_retried_with_the_same_transaction(
    over_http: Run, http_server: Any, transaction: Transaction
) -> None:
    http_server.script = ["reset", http_server.answer()]
    decision = over_http(http_server.url, lambda client: client.fraud.score(transaction), timeout_ms=10_000)
    assert decision.decision == "review"
    assert [seen.body["transaction_id"] for seen in http_server.seen] == ["t-1", "t-1"]


def test_a_refusal_that_stays_is_raised_with_its_wait(
    over_http: Run, http_server: Any, transaction: Transaction
) -> None:
    body = {"error": "queue is full", "kind": "overloaded"}
    http_server.script = [http_server.answer(429, body, {"Retry-After": "1", "x-request-id": "r-7"})]
    with pytest.raises(Overloaded, match="queue is full") as raised:
        over_http(http_server.url, lambda client: client.fraud.score(transaction), retries=1)
    assert (raised.value.retry_after_ms, raised.value.request_id) == (1_000, "r-7")
    assert len(http_server.seen) == 1  # the wait would have passed the deadline


@pytest.mark.parametrize(
    ("status", "kind", "error"), [(400, "invalid_input", InvalidInput), (504, "deadline_exceeded", DeadlineExceeded)]
)
def test_the_callers_errors_and_deadlines_are_not_retried(
    over_http: Run, http_server: Any, transaction: Transaction, status: int, kind: str, error: type[Exception]
) -> None:
    http_server.script = [
        http_server.answer(status, {"error": "no", "kind": kind, "field": "amount"}),
        http_server.answer(),
    ]
    with pytest.raises(error):
        over_http(http_server.url, lambda client: client.fraud.score(transaction))
    assert len(http_server.seen) == 1


def test_a_silent_server_is_left_at_the_deadline(over_http: Run, http_server: Any, transaction: Transaction) -> None:
    http_server.script = ["hang"]
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="no answer within 60 ms") as raised:
        over_http(http_server.url, lambda client: client.fraud.score(transaction, timeout_ms=60, request_id="mine"))
    assert 0.05 < time.monotonic() - begun < 5
    assert raised.value.request_id == "mine"
    assert len(http_server.seen) <= 1


def test_a_port_without_a_server_is_a_failed_connection(
    over_http: Run, unused_port: int, transaction: Transaction
) -> None:
    with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{unused_port} gave no answer") as raised:
        over_http(f"http://127.0.0.1:{unused_port}", lambda client: client.fraud.score(transaction))
    assert raised.value.is_retryable


def test_a_batch_has_a_result_for_every_item(over_http: Run, http_server: Any, transaction: Transaction) -> None:
    error = {"kind": "invalid_input", "message": "amount is -1; allowed 0 to 1e9", "field": "amount"}
    results = [http_server.answer().body, {"transaction_id": "t-2", "error": error}]
    http_server.script = [http_server.answer(body={"results": results})]
    first, second = over_http(http_server.url, lambda client: client.fraud.score_batch([transaction, transaction]))
    assert (first.decision, first.transaction_id) == ("review", "t-1")
    assert second == ItemError("invalid_input", "amount is -1; allowed 0 to 1e9", "t-2", "amount")
    assert http_server.seen[0].path == "/v1/fraud/score:batch"


def test_ready_asks_once_and_is_false_without_a_server(over_http: Run, http_server: Any, unused_port: int) -> None:
    http_server.script = [
        http_server.answer(200, {}),
        http_server.answer(503, {"error": "draining", "kind": "not_ready"}),
    ]
    assert over_http(http_server.url, lambda client: client.ready()) is True
    assert over_http(http_server.url, lambda client: client.ready()) is False
    assert [seen.path for seen in http_server.seen] == ["/v2/health/ready"] * 2
    assert over_http(f"http://127.0.0.1:{unused_port}", lambda client: client.ready()) is False


def test_budgets_are_read(over_http: Run, http_server: Any) -> None:
    http_server.script = [http_server.answer(body={"pipelines": {}})]
    assert over_http(http_server.url, lambda client: client.budgets()) == {}
    assert http_server.seen[0].path == "/v2/budgets"


def test_one_client_serves_many_threads(http_server: Any, transaction: Transaction) -> None:
    with Client(http_server.url, timeout_ms=30_000) as client, ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(lambda _: client.fraud.score(transaction), range(64)))
    assert [decision.decision for decision in decisions] == ["review"] * 64
    assert len({seen.headers["x-request-id"] for seen in http_server.seen}) == 64


def test_a_call_that_waits_for_the_pool_still_meets_its_deadline(http_server: Any, transaction: Transaction) -> None:
    http_server.script = ["hang"]
    with Client(http_server.url, timeout_ms=300, max_connections=1) as client, ThreadPoolExecutor(1) as pool:
        holder = pool.submit(client.fraud.score, transaction)
        http_server.arrived.wait(10)
        with pytest.raises(DeadlineExceeded, match="no answer within 30 ms"):
            client.fraud.score(transaction, timeout_ms=30)
        assert isinstance(holder.exception(), DeadlineExceeded)
    assert len(http_server.seen) == 1


def test_a_cancelled_task_ends_its_call_and_the_client_goes_on(http_server: Any, transaction: Transaction) -> None:
    async def main() -> str:
        async with AsyncClient(http_server.url, timeout_ms=30_000) as client:
            task = asyncio.create_task(client.fraud.score(transaction))
            await asyncio.to_thread(http_server.arrived.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return (await client.fraud.score(transaction)).decision

    http_server.script = ["hang", http_server.answer()]
    assert asyncio.run(main()) == "review"


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_impossible_settings_are_refused_at_once(make: Any) -> None:
    with pytest.raises(ValueError, match="timeout_ms is 0"):
        make(timeout_ms=0)
    with pytest.raises(ValueError, match="retries is -1"):
        make(retries=-1)
