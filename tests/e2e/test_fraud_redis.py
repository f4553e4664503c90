"""The whole server on Redis, which is killed and started again while transactions are scored."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from server import WIDE_BUDGETS, Server, wait_until
from transactions import new_id, transaction

from tests.redis_server import PASSWORD, RedisServer

pytestmark = pytest.mark.e2e

RECOVERS_S = 10


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path_factory.mktemp("redis"), "--appendfsync", "always").start()
    yield one
    one.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Server]:
    address = f"redis://127.0.0.1:{redis_server.port}"
    one = Server(
        tmp_path_factory.mktemp("server"), **WIDE_BUDGETS, features__store=address, features__timeout_ms=200.0,
        features__compact_after_s=0.0,
    )  # fmt: skip
    one.extra_environment["HEADROOM_REDIS_PASSWORD"] = PASSWORD
    try:
        yield one.start()
    finally:
        one.stop()


def test_windows_repeats_look_ups_and_erasures_work_as_on_the_embedded_store(server: Server) -> None:
    customer, terminal = new_id("customer"), new_id("terminal")
    sent = transaction(customer_id=customer, terminal_id=terminal, amount=900.0)
    first = server.post("/v1/fraud/score", sent)[1]
    second = server.post("/v1/fraud/score", {**sent, "transaction_id": new_id()})[1]
    assert first["degraded"] == second["degraded"] == []
    assert first["fraud_probability"] != second["fraud_probability"]
    assert server.post("/v1/fraud/score", sent)[1] == first
    assert json.loads(server.get(f"/v1/fraud/decisions/{sent['transaction_id']}")[1])["decision"] == first["decision"]
    label = {"labels": [{"transaction_id": sent["transaction_id"], "fraud": True}]}
    assert server.post("/v1/fraud/labels", label)[1]["results"][0]["status"] == "recorded"
    assert server.call("DELETE", f"/v1/fraud/customers/{customer}", None)[0] == 204
    assert server.get(f"/v1/fraud/decisions/{sent['transaction_id']}")[0] == 404


def test_killed_under_load_every_transaction_is_answered_and_recovery_needs_nobody(
    server: Server, redis_server: RedisServer
) -> None:
    seen: Counter[tuple[int, tuple[str, ...]]] = Counter()
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            status, answer, _ = server.post("/v1/fraud/score", transaction(transaction_id=new_id()))
            seen[status, tuple(answer.get("degraded", ("?",)))] += 1

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    without = (200, ("features", "unrecorded"))
    wait_until(lambda: seen[200, ()] > 50, 30, "transactions are scored")
    redis_server.kill()
    wait_until(lambda: seen[without] > 50, 30, "transactions are scored without Redis")
    status, body = server.get("/v1/fraud/decisions/nobody")
    assert (status, json.loads(body)["kind"]) == (503, "dependency_failed")
    redis_server.start()
    before = seen[200, ()]
    wait_until(lambda: seen[200, ()] > before, RECOVERS_S, "transactions are scored with Redis again")
    is_over.set()
    for client in clients:
        client.join()
    assert {status for status, _ in seen} == {200}, seen
    assert server.get("/v2/health/ready")[0] == 200
    assert PASSWORD not in server.log_text()
