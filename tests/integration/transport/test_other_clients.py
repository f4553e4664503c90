"""Clients that nobody here wrote: Node's grpc-js, h2load, curl."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.transport.interop_server import SERVICE, InteropServer

FOLDER = Path(__file__).parent
NODE_MODULES = FOLDER.parents[2] / ".build" / "node" / "node_modules"
WAIT_S = 60
GRPC_HEADERS = ["-H", "content-type: application/grpc", "-H", "te: trailers"]


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


@installed("node")
@pytest.mark.skipif(not (NODE_MODULES / "@grpc" / "grpc-js").exists(), reason="make node-packages has not been run")
def test_nodes_grpc_js(server: InteropServer) -> None:
    done = subprocess.run(
        ["node", str(FOLDER / "interop.js"), server.target, SERVICE], capture_output=True, text=True, timeout=WAIT_S,
        env={"NODE_PATH": str(NODE_MODULES), "PATH": "/usr/local/bin:/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "status",
        "unimplemented", "cancel_after_begin", "cancel_after_first_response", "timeout", "custom_metadata",
    ]  # fmt: skip


@installed("h2load")
def test_h2load(server: InteropServer, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"\0\0\0\0\x02{}")
    url = f"http://{server.target}/{SERVICE}/UnaryCall"
    done = subprocess.run(
        ["h2load", "-n", "20000", "-c", "8", "-m", "32", *GRPC_HEADERS, "-d", str(body), url],
        capture_output=True, text=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    assert "20000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout


@installed("curl")
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-X", "GET"], 405),
        (["-X", "POST", "-d", "{}", "-H", "content-type: application/json"], 415),
        (["-X", "POST", "--data-binary", "", *GRPC_HEADERS], 200),
    ],
)
def test_curl(server: InteropServer, words: list[str], status: int) -> None:
    url = f"http://{server.target}/{SERVICE}/UnaryCall"
    done = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}", *words, url],
        capture_output=True, text=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    assert done.stdout == f"2 {status}"


@installed("curl")
def test_curl_sees_an_answer_and_its_trailers(server: InteropServer, tmp_path: Path) -> None:
    body = tmp_path / "body"
    asked = json.dumps({"size": 4}).encode()
    body.write_bytes(b"\0" + len(asked).to_bytes(4, "big") + asked)
    url = f"http://{server.target}/{SERVICE}/UnaryCall"
    done = subprocess.run(
        ["curl", "-sv", "--http2-prior-knowledge", "--data-binary", f"@{body}", "-o", str(tmp_path / "answer"),
         *GRPC_HEADERS, url], capture_output=True, text=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    assert (tmp_path / "answer").read_bytes() == b"\0\0\0\0\x04\0\0\0\0"
    assert re.search(r"< grpc-status: 0", done.stderr)
