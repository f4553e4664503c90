"""The client as a user's type checker sees it. Never run: `mypy --strict` reads it; an unused ignore is an error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal, assert_never, assert_type

from headroom_client import (
    AsyncClient,
    AsyncGrpcClient,
    Client,
    Decision,
    GrpcClient,
    HeadroomClientError,
    ItemError,
    PipelineBudget,
    Transaction,
)

PURCHASE = Transaction(transaction_id="t", customer_id="c", terminal_id="m", amount=1, timestamp=datetime.now(UTC))


def sync_http() -> None:
    with Client("http://127.0.0.1:8000", timeout_ms=50, retries=1, headers={"authorization": "Bearer key"}) as client:
        assert_type(client, Client)
        assert_type(client.fraud.score(PURCHASE), Decision)
        assert_type(client.fraud.score(PURCHASE, timeout_ms=20, request_id="r", traceparent=None), Decision)
        assert_type(
            client.fraud.score(transaction_id="t", customer_id="c", terminal_id="m", amount=1, timestamp=0), Decision
        )
        assert_type(
            client.fraud.score(
                transaction_id="t", customer_id="c", terminal_id="m", amount=1, timestamp=0, latitude=1.5, timeout_ms=20
            ),
            Decision,
        )
        assert_type(client.fraud.score_batch((PURCHASE,), timeout_ms=20), list[Decision | ItemError])
        assert_type(client.budgets(), dict[str, PipelineBudget])
        assert_type(client.ready(timeout_ms=20), bool)


def sync_grpc() -> None:
    with GrpcClient("127.0.0.1:8001") as client:
        assert_type(client, GrpcClient)
        assert_type(client.fraud.score(PURCHASE), Decision)
        assert_type(client.fraud.score_batch([PURCHASE]), list[Decision | ItemError])
        assert_type(client.fraud.score_stream(iter([PURCHASE])), Iterator[Decision | ItemError])
        assert_type(client.ready(), bool)


async def feed() -> AsyncIterator[Transaction]:
    yield PURCHASE


async def asynchronous() -> None:
    async with AsyncClient() as client:
        assert_type(await client.fraud.score(PURCHASE), Decision)
        assert_type(await client.fraud.score_batch([PURCHASE]), list[Decision | ItemError])
        assert_type(await client.budgets(), dict[str, PipelineBudget])
        assert_type(await client.ready(), bool)
    async with AsyncGrpcClient() as grpc_client:
        assert_type(await grpc_client.fraud.score(PURCHASE, timeout_ms=20), Decision)
        assert_type(grpc_client.fraud.score_stream(feed()), AsyncIterator[Decision | ItemError])
        async for result in grpc_client.fraud.score_stream(feed(), timeout_ms=5_000):
            assert_type(result, Decision | ItemError)


def reading(result: Decision | ItemError) -> str:
    if isinstance(result, ItemError):
        return result.field or result.kind
    assert_type(result.scores, Mapping[str, float])
    assert_type(result.server_timing.stages_ms, Mapping[str, float])
    assert_type(result.decision, Literal["approve", "review", "decline"])
    match result.decision:
        case "approve" | "review" | "decline":
            return result.reasons[0].text
        case other:
            assert_never(other)


def refused(client: Client, grpc_client: GrpcClient, decision: Decision) -> None:
    client.fraud.score()  # type: ignore[call-overload]
    client.fraud.score(PURCHASE, amount=2)  # type: ignore[call-overload]
    client.fraud.score(PURCHASE, timeout="1 s")  # type: ignore[call-overload]
    client.fraud.score(transaction_id="t", customer_id="c", terminal_id="m", amount="1", timestamp=0)  # type: ignore[call-overload]
    client.fraud.score_batch(PURCHASE)  # type: ignore[arg-type]
    client.fraud.score_stream([PURCHASE])  # type: ignore[attr-defined]
    grpc_client.fraud.score_stream(feed())  # type: ignore[arg-type]
    decision.decision = "approve"  # type: ignore[misc]
    Client(retry=3)  # type: ignore[call-arg]


def errors(error: HeadroomClientError) -> None:
    assert_type(error.kind, str)
    assert_type(error.field, str | None)
    assert_type(error.request_id, str | None)
    assert_type(error.retry_after_ms, float | None)
    assert_type(error.is_retryable, bool)
