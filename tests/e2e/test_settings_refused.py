"""A configuration with mistakes: each is said before anything loads, nothing listens, and a corrected one goes through.

Ray's `serve run` itself goes on after a refusal and waits for a `serve deploy` of something better.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from server import Server, wait_until
from transactions import transaction

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SAY_S = 120.0
MISTAKES: dict[str, Any] = {
    "limits__max_bodybytes": 1024,
    "pipelines__fraud__budget_ms": -5,
    "pipelines__fraud__ladder": ["reason"],
    "features__store": "redis?",
}
SAID = (
    "args.limits.max_bodybytes: unknown key; allowed: ",
    "args.pipelines.fraud.budget_ms: is -5; allowed: greater than 0",
    "args.features.store: is no address (it may hold a password, so it is not shown); allowed: embedded, redis://",
)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`serve run` of a configuration that cannot serve; the tests below deploy better ones."""
    server = Server(tmp_path_factory.mktemp("wrong"), **MISTAKES)
    server.launch()
    try:
        yield server
    finally:
        server.stop()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_every_mistake_in_args_is_named_before_anything_loads(wrong: Server) -> None:
    wait_until(lambda: all(line in wrong.log_text() for line in SAID), SAY_S, f"{SAID} in the log")
    assert "max_body_bytes" in wrong.log_text()
    assert "loading model" not in wrong.log_text()
    assert not any(map(is_listening, (wrong.http_port, wrong.grpc_port, wrong.metrics_port)))


def test_a_mistake_in_the_tunables_is_named_before_anything_loads(wrong: Server) -> None:
    wrong.set_config()
    wrong.ingress["user_config"] = {"fraud": {"wait_share": 2}}
    wrong.deploy()
    said = "user_config.fraud.wait_share: is 2; allowed: less than or equal to 1"
    wait_until(lambda: said in wrong.log_text(), SAY_S, f"{said!r} in the log")
    assert "loading model" not in wrong.log_text()
    assert not is_listening(wrong.http_port)


def test_a_corrected_configuration_serves(wrong: Server) -> None:
    wrong.set_config()
    wrong.deploy()
    wrong.wait_until_ready()
    status, answer, _ = wrong.post("/v1/fraud/score", transaction())
    assert status in (200, 429, 504), answer


def test_a_mistake_while_serving_is_named_and_the_server_goes_on(wrong: Server) -> None:
    wrong.set_config()
    wrong.deploy()
    wrong.wait_until_ready()
    wrong.set_config(limits__max_connections=0)
    wrong.deploy()
    said = "args.limits.max_connections: is 0; allowed: greater than or equal to 1"
    wait_until(lambda: said in wrong.log_text(), SAY_S, f"{said!r} in the log")
    status, answer, _ = wrong.post("/v1/fraud/score", transaction())
    assert status in (200, 429, 504), answer
