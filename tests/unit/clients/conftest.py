"""Real local servers that answer from a script, so that every test decides what its client meets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from headroom_client import AsyncClient, AsyncGrpcClient, Client, GrpcClient, Transaction

from protos.headroom.fraud.v1 import fraud_pb2, fraud_pb2_grpc

DECISION_BODY = {
    "transaction_id": "t-1",
    "fraud_probability": 0.25,
    "decision": "review",
    "risk_level": "medium",
    "scores": {"fraud_ensemble": 0.25},
    "reasons": [{"feature": "amount", "value": 12.5, "contribution": 0.75, "text": "the amount is unusual"}],
    "degraded": ["features"],
    "model_version": "3",
}
DECISION_MESSAGE = fraud_pb2.ScoreResponse(**DECISION_BODY | {"decision": fraud_pb2.DECISION_KIND_REVIEW})


@dataclass(frozen=True)
class HttpAnswer:
    status: int = 200
    body: Any = field(default_factory=lambda: DECISION_BODY)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    path: str
    headers: dict[str, str]
    body: Any


class HttpScript(ThreadingHTTPServer):
    """Answers request n with script[n], and every later one with the last. "reset" and "hang" stand for no answer."""

    answer = HttpAnswer
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[HttpAnswer | str] = [HttpAnswer()]
        self.seen: list[Seen] = []
        self.arrived = threading.Event()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def next_answer(self, seen: Seen) -> HttpAnswer | str:
        self.seen.append(seen)
        self.arrived.set()
        return self.script[min(len(self.seen), len(self.script)) - 1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpScript

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.next_answer(Seen(self.path, headers, json.loads(body) if body else None))
        if isinstance(answer, HttpAnswer):
            self.reply(answer)
        elif answer == "hang":
            self.server.closing.wait(30)
            self.close_connection = True
        else:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    do_GET = do_POST

    def reply(self, answer: HttpAnswer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in ({"content-length": str(len(body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_server() -> Iterator[HttpScript]:
    with HttpScript() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


GrpcAnswer = Callable[[Any, grpc.ServicerContext], Any]


class GrpcScript(fraud_pb2_grpc.FraudServiceServicer):
    """Answers call n with script[n], and every later one with the last."""

    def __init__(self) -> None:
        self.script: list[GrpcAnswer] = [lambda request, context: DECISION_MESSAGE]
        self.seen: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining_s: list[float | None] = []
        self.target = ""
        self.health = b"\x08\x01"

    @staticmethod
    def refusal(code: grpc.StatusCode, details: str, **metadata: str) -> GrpcAnswer:
        """An answer that ends the call with `code`; underscores in the metadata's names become dashes."""

        def answer(_: Any, context: grpc.ServicerContext) -> Any:
            context.set_trailing_metadata(tuple((name.replace("_", "-"), value) for name, value in metadata.items()))
            context.abort(code, details)

        return answer

    def Score(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.seen.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining_s.append(context.time_remaining())
        return self.script[min(len(self.seen), len(self.script)) - 1](request, context)

    ScoreBatch = Score
    ScoreStream = Score

    def check_health(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self.health


@pytest.fixture
def grpc_server() -> Iterator[GrpcScript]:
    script = GrpcScript()
    check = grpc.unary_unary_rpc_method_handler(script.check_health)
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        fraud_pb2_grpc.add_FraudServiceServicer_to_server(script, server)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),)
        )
        script.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield script
        server.stop(None).wait()


Use = Callable[[Any], Any]
"""Calls one method of a client; the same lambda serves sync and async, because only the runner awaits."""


def _run_sync(make: Callable[..., Any]) -> Callable[..., Any]:
    def run(address: str, use: Use, **arguments: Any) -> Any:
        with make(address, **arguments) as client:
            return use(client)

    return run


def _run_async(make: Callable[..., Any]) -> Callable[..., Any]:
    def run(address: str, use: Use, **arguments: Any) -> Any:
        async def main() -> Any:
            async with make(address, **arguments) as client:
                return await use(client)

        return asyncio.run(main())

    return run


@pytest.fixture(params=["sync", "async"])
def over_http(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return _run_sync(Client) if request.param == "sync" else _run_async(AsyncClient)


@pytest.fixture(params=["sync", "async"])
def over_grpc(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return _run_sync(GrpcClient) if request.param == "sync" else _run_async(AsyncGrpcClient)


@pytest.fixture
def transaction() -> Transaction:
    return Transaction(
        transaction_id="t-1",
        customer_id="c-1",
        terminal_id="m-1",
        amount=12.5,
        timestamp=1_700_000_000.5,
        currency="EUR",
    )


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
