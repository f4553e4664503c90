"""Scores a few card transactions over HTTP and gRPC, synchronously and with asyncio, and prints the answers.

Needs a running server (`make serve`) and the client (`pip install ./clients/python`):

    python clients/examples/fraud.py --url http://127.0.0.1:8000 --grpc 127.0.0.1:8001
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from uuid import uuid4

from headroom_client import (
    AsyncClient,
    AsyncGrpcClient,
    Client,
    Decision,
    GrpcClient,
    HeadroomClientError,
    ItemError,
    Transaction,
)


def purchases(amounts: list[float]) -> list[Transaction]:
    """One customer's purchases at one terminal, a minute apart, the last one now."""
    now_s = time.time()
    return [
        Transaction(
            transaction_id=uuid4().hex,
            customer_id="customer-596",
            terminal_id="terminal-3156",
            amount=amount,
            timestamp=now_s - 60 * (len(amounts) - 1 - n),
            currency="EUR",
        )
        for n, amount in enumerate(amounts)
    ]


def show(result: Decision | ItemError) -> None:
    """Prints one answer with its reasons and the server's time by stage."""
    if isinstance(result, ItemError):
        print(f"  {result.transaction_id}: {result.kind}: {result.message}")
        return
    print(f"  {result.transaction_id}: {result.decision}, {result.fraud_probability:.4f} ({result.risk_level} risk)")
    for reason in result.reasons:
        print(f"    because {reason.text} ({reason.contribution:+.2f})")
    if result.degraded:
        print(f"    without {', '.join(result.degraded)}")
    if result.server_timing.stages_ms:
        print("    ms: " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in result.server_timing.stages_ms.items()))


def over_http(url: str) -> None:
    """One transaction, the same once more, and a batch with a wrong item in it."""
    with Client(url, timeout_ms=2_000) as client:
        print(f"HTTP, sync: the server at {url} is {'ready' if client.ready() else 'not ready'}")
        purchase, *others = purchases([25.0, 31.4, 880.0])
        show(client.fraud.score(purchase))
        print("  the same transaction_id again returns the stored decision:")
        show(client.fraud.score(purchase))
        print("HTTP, sync, a batch; the item with a negative amount fails alone:")
        for result in client.fraud.score_batch([*others, *purchases([-5.0])]):
            show(result)
        for name, budget in client.budgets().items():
            print(f"  {name}: p99 {budget.p99_ms} ms of {budget.budget_ms} ms over {budget.requests} requests")


async def over_http_async(url: str) -> None:
    """Many calls at once on one event loop."""
    async with AsyncClient(url, timeout_ms=2_000) as client:
        print("HTTP, async, three at once:")
        for decision in await asyncio.gather(*(client.fraud.score(purchase) for purchase in purchases([12, 13, 14]))):
            show(decision)


def over_grpc(target: str) -> None:
    """One call by keyword, with a deadline of its own."""
    with GrpcClient(target, timeout_ms=2_000) as client:
        print(f"gRPC, sync: the server at {target} is {'ready' if client.ready() else 'not ready'}")
        show(
            client.fraud.score(
                transaction_id=uuid4().hex,
                customer_id="customer-596",
                terminal_id="terminal-3156",
                amount=57.16,
                timestamp=time.time(),
                timeout_ms=500,
            )
        )


async def over_grpc_async(target: str) -> None:
    """A stream: transactions go out as they come, results come back as they are ready."""

    async def feed() -> AsyncIterator[Transaction]:
        for purchase in purchases([40.0, 41.0, 42.0]):
            yield purchase

    async with AsyncGrpcClient(target, timeout_ms=2_000) as client:
        print("gRPC, async, a stream:")
        async for result in client.fraud.score_stream(feed(), timeout_ms=5_000):
            show(result)


def main() -> int:
    """Runs the four in turn; returns 1 when a call fails."""
    parser = argparse.ArgumentParser(description="Score card transactions over HTTP and gRPC.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="HTTP address (default: %(default)s)")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="gRPC address (default: %(default)s)")
    addresses = parser.parse_args()
    try:
        over_http(addresses.url)
        asyncio.run(over_http_async(addresses.url))
        over_grpc(addresses.grpc)
        asyncio.run(over_grpc_async(addresses.grpc))
    except HeadroomClientError as error:
        print(f"{error.kind}: {error} (request {error.request_id})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
