"""kill -9 of the replica under load: back within seconds, nothing answered is lost, nothing counts twice."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import Server, wait_until

from serve.features.backfill import backfill
from serve.features.embedded import EmbeddedStore
from serve.features.store import Events

pytestmark = pytest.mark.e2e

NUM_CUSTOMERS, NUM_TERMINALS = 40, 60


def _transactions(num: int) -> list[dict[str, Any]]:
    rng = random.Random(7)
    return [
        {
            "transaction_id": f"k{i:06d}",
            "customer_id": f"c{rng.randrange(NUM_CUSTOMERS)}",
            "terminal_id": f"m{rng.randrange(NUM_TERMINALS)}",
            "amount": round(rng.lognormvariate(3.5, 0.8), 2),
            "timestamp": 1_533_700_000 + 11 * i,
        }
        for i in range(num)
    ]


def _score(server: Server, transaction: dict[str, Any]) -> dict[str, Any] | None:
    """The decision, or None when the connection was lost or the answer was not a decision."""
    request = urllib.request.Request(
        f"{server.url}/v1/fraud/score", data=json.dumps(transaction).encode(), headers={"X-Request-Timeout-Ms": "20000"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            decision: dict[str, Any] = json.loads(answer.read())
            return decision
    except (OSError, urllib.error.HTTPError):
        return None


def test_killed_replica_is_back_and_nothing_answered_is_lost(tmp_path: Path) -> None:
    server = Server(tmp_path, pipelines__fraud__budget_ms=20_000)
    try:
        server.start()
        transactions = _transactions(3000)
        answered: dict[str, dict[str, Any]] = {}
        kill_now = threading.Event()

        def client(part: list[dict[str, Any]]) -> None:
            for transaction in part:
                decision = _score(server, transaction)
                if decision is not None:
                    answered[transaction["transaction_id"]] = decision
                if len(answered) > 500:
                    kill_now.set()

        with ThreadPoolExecutor(8) as clients:
            running = [clients.submit(client, transactions[i::8]) for i in range(8)]
            kill_now.wait(60)
            killed = server.replicas()[0]
            os.kill(killed.pid, signal.SIGKILL)
            wait_until(lambda: [p for p in server.replicas() if p.pid != killed.pid], 30, "Ray starts another replica")
            wait_until(server.is_ready, 60, "the new replica answers")
            for future in running:
                future.result()
        lost = [t for t in transactions if t["transaction_id"] not in answered]
        _retries_return_what_was_decided(server, transactions, answered)
        for transaction in lost:
            answered[transaction["transaction_id"]] = _score(server, transaction) or pytest.fail("retry failed")
    finally:
        server.stop()
    _windows_equal_a_replay(tmp_path / "features", answered)


def _retries_return_what_was_decided(
    server: Server, transactions: list[dict[str, Any]], answered: dict[str, dict[str, Any]]
) -> None:
    for transaction in transactions[::50]:
        before = answered.get(transaction["transaction_id"])
        if before is not None and "unrecorded" not in before["degraded"]:
            assert _score(server, transaction) == before


def _windows_equal_a_replay(folder: Path, answered: dict[str, dict[str, Any]]) -> None:
    """Every recorded decision is in the log once, and the windows are those of an offline replay of the log."""
    store = EmbeddedStore(folder, max_bytes=4 << 30)
    try:
        entries = [entry for _, entry in store.read_log()]
        ids = [entry.transaction_id for entry in entries]
        assert len(ids) == len(set(ids))
        recorded = {key for key, decision in answered.items() if not {"unrecorded"} & set(decision["degraded"])}
        assert recorded <= set(ids)
        probe_s = max(entry.event_s for entry in entries) + 60
        for kind, num in (("c", NUM_CUSTOMERS), ("m", NUM_TERMINALS)):
            names = [f"{kind}{i}" for i in range(num)]
            events = Events(
                [f"probe-{name}" for name in names],
                names if kind == "c" else [f"nobody-{name}" for name in names],
                names if kind == "m" else [f"nowhere-{name}" for name in names],
                np.full(num, probe_s, np.int64),
                np.zeros(num, np.int64),
                np.full((num, 2), np.nan),
            )
            fetched = store.fetch(events)
            online = fetched.customer if kind == "c" else fetched.terminal
            offline = backfill(
                np.array([entry.customer_id for entry in entries] + list(events.customer_ids)),
                np.array([entry.terminal_id for entry in entries] + list(events.terminal_ids)),
                np.array([entry.event_s for entry in entries] + [probe_s] * num, np.int64),
                np.concatenate((np.array([entry.amount_e4 for entry in entries], np.int64), np.zeros(num, np.int64))),
            )
            expected = offline.customer if kind == "c" else offline.terminal
            np.testing.assert_array_equal(online.totals, expected.totals[-num:])
            np.testing.assert_array_equal(online.profile, expected.profile[-num:])
    finally:
        store.close()
