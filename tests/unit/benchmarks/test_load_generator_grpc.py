"""The load generator's gRPC side against grpcio and against a hand-made HTTP/2 server that refuses and goes away."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import struct
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.unit.benchmarks.load_peers import MARKER, generate, listening, refuse


@contextlib.contextmanager
def grpc_server(answer: Callable[[bytes, grpc.ServicerContext], bytes], **options: int) -> Iterator[int]:
    class Service(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return grpc.unary_unary_rpc_method_handler(answer) if details.method == "/test.Echo/Call" else None

    pairs = [(f"grpc.{name}", value) for name, value in options.items()]
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Service()], options=pairs)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


GRPC = ("--protocol", "grpc", "--duration-s", "0.25", "--connections", "2", "--streams", "8")


def test_grpc_statuses_come_from_the_trailers_and_messages_arrive_whole(tmp_path: Path) -> None:
    received: list[bytes] = []

    def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
        received.append(message)
        assert dict(context.invocation_metadata())["x-tenant"] == "a"
        if message[-1] % 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        return bytes(100_000)

    bodies = (MARKER.encode() + bytes(70_000) + b"\0", MARKER.encode() + b"\1")
    flags = ("--rate", "160", "--unique-marker", MARKER, "--header", "X-Tenant: a")
    with grpc_server(answer) as port:
        run = generate(tmp_path, port, *GRPC, *flags, path="/test.Echo/Call", bodies=bodies)
    assert run.result["by_status"] == {"0": 20, "8": 20}
    assert collections.Counter(map(len, received)) == {len(bodies[0]): 20, len(bodies[1]): 20}
    assert len({message[: len(MARKER)] for message in received}) == 40


def test_grpc_unknown_method_is_an_answer_with_its_status(tmp_path: Path) -> None:
    with grpc_server(lambda *_: b"") as port:
        run = generate(tmp_path, port, *GRPC, "--rate", "80", path="/test.Echo/Other")
    assert run.result["by_status"] == {"12": 20}
    assert run.result["latency_us"] is None


def test_grpc_connections_that_reach_their_age_lose_no_call(tmp_path: Path) -> None:
    ages = {"max_connection_age_ms": 50, "max_connection_age_grace_ms": 5000}
    with grpc_server(lambda *_: b"", **ages) as port:
        run = generate(tmp_path, port, *GRPC, "--rate", "800", path="/test.Echo/Call")
    assert run.result["ok"] == 200
    assert run.result["connections_opened"] > 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def grpc_ok(stream: int) -> bytes:
    return frame(1, 5, stream, b"\x88\x00\x0bgrpc-status\x010")  # :status 200 and grpc-status 0, end of stream


GOAWAY_AFTER_1 = grpc_ok(1) + frame(7, 0, 0, struct.pack(">II", 1, 0))
REFUSED_STREAM_3 = grpc_ok(1) + frame(3, 0, 3, struct.pack(">I", 7))


class Http2Peer(asyncio.Protocol):
    """HTTP/2 whose first connection lets stream 1 wait and has `on_second_call` for an answer to stream 3."""

    def __init__(self, peers: list[Http2Peer], on_second_call: bytes) -> None:
        peers.append(self)
        self.on_second_call = on_second_call if len(peers) == 1 else b""
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(frame(4, 0, 0))

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.startswith(b"PRI"):
            self.received = self.received[24:]
        while len(self.received) >= 9 and len(self.received) >= 9 + int.from_bytes(self.received[:3], "big"):
            end = 9 + int.from_bytes(self.received[:3], "big")
            kind, flags, stream = self.received[3], self.received[4], int.from_bytes(self.received[5:9], "big")
            self.received = self.received[end:]
            if kind == 0 and flags & 1:
                self.on_call(stream)

    def on_call(self, stream: int) -> None:
        if self.on_second_call and stream == 1:
            return None
        if self.on_second_call:
            self.transport.write(self.on_second_call)
            if self.on_second_call != REFUSED_STREAM_3:
                return self.transport.close()
            self.on_second_call = b""
            return None
        self.transport.write(grpc_ok(stream))
        return None


@pytest.mark.parametrize(
    ("on_second_call", "expected"),
    [
        (GOAWAY_AFTER_1, (20, 0, 1)),
        (REFUSED_STREAM_3, (20, 0, 1)),
        (grpc_ok(1), (19, 1, 0)),  # only the end of the connection: nobody knows
    ],
    ids=["goaway", "refused", "cut off"],
)
def test_grpc_calls_the_server_declares_unprocessed_are_sent_again(
    tmp_path: Path, on_second_call: bytes, expected: tuple[int, int, int]
) -> None:
    peers: list[Http2Peer] = []
    with listening(lambda: Http2Peer(peers, on_second_call)) as port:
        run = generate(tmp_path, port, *GRPC, "--connections", "1", "--rate", "80")
    ok, resets, resent = expected
    # On a busy machine more calls than one are under way when the server declares, or ends the connection.
    found = run.result["failed"]["reset"]
    assert run.result["ok"] + found == ok + resets
    assert found >= resets if resets else found == 0
    assert run.result["resent"] >= resent
    assert len(peers) == (1 if on_second_call == REFUSED_STREAM_3 else 2)


def test_a_server_that_speaks_http1_is_an_error_at_once(tmp_path: Path) -> None:
    bad_request = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    class Http1Only(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, _: bytes) -> None:
            self.transport.write(bad_request)
            self.transport.close()

    with listening(Http1Only) as port:
        refused = refuse("--url", f"http://127.0.0.1:{port}/a/b", *GRPC, "--rate", "80")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "Protocol error" in refused.stderr
