"""The client's runnable example, run as its own header says, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from server import ROOT, Server

from benchmarks.subject import free_ports

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "clients" / "examples" / "fraud.py"


def run(url: str, grpc: str) -> subprocess.CompletedProcess[str]:
    """With the client's package alone on the path: none of the server's."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--url", url, "--grpc", grpc],
        env={**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_example_runs_through_every_way_to_call(server: Server) -> None:
    result = run(server.url, server.grpc)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    for said in ("HTTP, sync", "HTTP, async", "gRPC, sync", "gRPC, async", "ms: ", "p99"):
        assert said in result.stdout
    assert "is ready" in result.stdout
    assert "amount is -5" in result.stdout, "the item that is wrong fails alone and says why"


def test_the_example_without_a_server_says_so_and_fails() -> None:
    http_port, grpc_port = free_ports(2)
    result = run(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr
