"""Nothing is lost while a running server is changed: tunables, revision, number of replicas."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from load import Load, grpc_bodies, http_bodies
from server import Server, wait_until

pytestmark = pytest.mark.e2e

SCORE = "/headroom.fraud.v1.FraudService/Score"


def _load(server: Server, folder: Path, protocol: str, is_changed: threading.Event) -> list[dict[str, Any]]:
    """One run of the generator after the other until the changes are made."""
    is_http = protocol == "http1"
    url = server.url + "/v1/fraud/score" if is_http else f"http://{server.grpc}{SCORE}"
    bodies = http_bodies() if is_http else grpc_bodies()
    reports = []
    while not is_changed.is_set():
        load = Load(
            folder, url, protocol, bodies, mode="open", rate=2000 if is_http else 100, duration_s=20,
            connections=64 if is_http else 2, timeout_ms=30_000,
            unique_start=10**6 * (len(reports) + 1) + (0 if is_http else 10**9),
        )  # fmt: skip
        reports.append(load.result())
    return reports


def _replaced(server: Server, before: set[int], num: int) -> bool:
    now = {process.pid for process in server.replicas()}
    return len(now) == num and not now & before


def test_changing_a_server_under_load_fails_no_request(tmp_path: Path) -> None:
    # The budget is wide on purpose: this is about lost requests, not about the time of two replicas starting on a core.
    server = Server(tmp_path, pipelines__fraud__budget_ms=20_000, pipelines__fraud__max_queue_items=100_000)
    try:
        server.start()
        with ThreadPoolExecutor(2) as loads:
            is_changed = threading.Event()
            running = [loads.submit(_load, server, tmp_path, protocol, is_changed) for protocol in ("http1", "grpc")]
            try:
                _change_everything(server)
            finally:
                is_changed.set()
            for report in [report for reports in running for report in reports.result()]:
                assert sum(report["failed"].values()) == 0, report
                assert report["not_sent"] == 0, report
                assert set(report["by_status"]) <= {"200", "0"}, report["by_status"]
    finally:
        server.stop()


def _change_everything(server: Server) -> None:
    first = {process.pid for process in server.replicas()}
    assert len(first) == 1
    server.ingress["user_config"]["fraud"]["review_at"] = 0.3
    server.deploy()
    wait_until(lambda: "applied" in server.log_path.read_text(), 60, "the tunable is applied")
    assert {process.pid for process in server.replicas()} == first, "a tunable must not restart a replica"
    server.args["revision"] = 2
    server.deploy()
    wait_until(lambda: _replaced(server, first, 1), 90, "the revision replaces the replica")
    server.ingress["num_replicas"] = 2
    server.deploy()
    wait_until(lambda: len(server.replicas()) == 2, 90, "a second replica runs")
    second = {process.pid for process in server.replicas()}
    server.args["revision"] = 3
    server.deploy()
    wait_until(lambda: _replaced(server, second, 2), 150, "the revision replaces both replicas")
    server.ingress["num_replicas"] = 1
    server.deploy()
    wait_until(lambda: len(server.replicas()) == 1, 60, "one replica is left")
