"""Clients that break HTTP, on purpose or not, and clients that leave: what they get, and that nobody else notices."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator

import grpc
import httpx
import pytest
from raw_http import RawAnswer, RawClient, request_bytes
from server import Server, wait_until
from transactions import transaction

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from protos.headroom.fraud.v1.fraud_pb2_grpc import FraudServiceStub

pytestmark = pytest.mark.e2e

SCORE = "/v1/fraud/score"
LIVE = "/v2/health/live"


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(server: Server) -> Iterator[None]:
    """Whatever a test does, the server answers afterwards and nothing stays in flight."""
    before = server.metric("headroom_requests_in_flight")
    yield
    wait_until(lambda: server.metric("headroom_requests_in_flight") <= before, 10, "nothing stays in flight")
    status, answer, _ = server.post(SCORE, transaction())
    assert status == 200, answer


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    with RawClient(server.http_port) as opened:
        yield opened


def answered(client: RawClient) -> RawAnswer:
    answer = client.answer()
    assert answer is not None, "closed without an answer"
    return answer


def score_bytes(client: RawClient) -> bytes:
    return request_bytes(client.port, "POST", SCORE, json.dumps(transaction()).encode())


# Request smuggling

TWO_WAYS: dict[str, bytes] = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, 30\r\n\r\n{}",
    "length and chunked": b"Content-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n",
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "almost chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"Content-Length: -2\r\n\r\n{}",
    "a signed length": b"Content-Length: +2\r\n\r\n{}",
    "a hexadecimal length": b"Content-Length: 0x2\r\n\r\n{}",
    "an endless length": b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "an empty length": b"Content-Length: \r\n\r\n{}",
    "a chunk size that is none": b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "an endless chunk": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "bare line feeds": b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    "NUL in a value": b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "CR in a value": b"X-A: a\rb\r\nContent-Length: 2\r\n\r\n{}",
    "LF in a value": b"X-A: a\nContent-Length: 2\r\n\r\n{}",
    "a control character in a value": b"X-A: a\x01b\r\nContent-Length: 2\r\n\r\n{}",
    "a space in a name": b"X A: a\r\nContent-Length: 2\r\n\r\n{}",
    "no colon": b"XA\r\nContent-Length: 2\r\n\r\n{}",
    "a second host": b"Host: evil.example\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("rest", TWO_WAYS.values(), ids=TWO_WAYS)
def test_what_could_be_read_in_two_ways_is_400_and_ends_the_connection(
    server: Server, client: RawClient, rest: bytes
) -> None:
    def malformed() -> float:
        return server.metric("headroom_rejections_total", protocol="http", reason="malformed")

    before = malformed()
    head = f"POST {SCORE} HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n".encode()
    answer = answered(client.send(head + rest + request_bytes(client.port, "GET", "/v2")))
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert "Traceback" not in answer.body.decode()
    assert client.is_closed(), "what follows was read as a second request"
    assert malformed() == before + 1


def test_a_foreign_host_hidden_before_ours_is_refused(client: RawClient) -> None:
    client.send(b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\n\r\n")
    assert answered(client).status in (400, 403)


def test_http_1_1_without_a_host_is_400(client: RawClient) -> None:
    """RFC 9112, 3.2."""
    assert answered(client.send(b"GET /v2 HTTP/1.1\r\n\r\n")).status == 400


def test_trailers_of_a_chunked_body_never_count_as_headers(client: RawClient) -> None:
    body = json.dumps(transaction()).encode()
    client.request("POST", SCORE, Transfer_Encoding="chunked")
    client.send(b"%x\r\n%b\r\n0\r\nHost: evil.example\r\nX-Request-Timeout-Ms: 0.001\r\n\r\n" % (len(body), body))
    assert answered(client).status == 200


NO_HTTP: dict[str, bytes] = {
    "a TLS handshake": bytes.fromhex("16030100f8010000f40303") + bytes(239),
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": b"GET / HTTP/3.7\r\n\r\n",
    "noise": bytes(range(256)),
    "NULs": bytes(64),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
@pytest.mark.parametrize("port", ["http_port", "metrics_port"])
def test_what_is_no_http_is_400_and_ends_the_connection(server: Server, port: str, sent: bytes) -> None:
    with RawClient(getattr(server, port)) as client:
        answer = answered(client.send(sent))
        assert (answer.status, answer.headers["connection"]) == (400, "close")


@pytest.mark.parametrize("sent", [*NO_HTTP.values(), b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_grpc_ends_the_connection(server: Server, sent: bytes) -> None:
    with RawClient(server.grpc_port) as client:
        client.send(sent + bytes(64))
        client.socket.shutdown(socket.SHUT_WR)
        while client.socket.recv(4096):
            pass


# Pages of others


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
@pytest.mark.parametrize("target", [SCORE, "/v2/models/creditcard/infer", "/v2"])
def test_foreign_pages_and_names_are_forbidden(
    client: RawClient, target: str, headers: dict[str, str], status: int
) -> None:
    method = "GET" if target == "/v2" else "POST"
    answer = answered(client.request(method, target, b"" if method == "GET" else b"{}", **headers))
    assert answer.status == (400 if status == 200 and method == "POST" else status)
    if status == 403:
        assert next(iter(headers)) in answer.json()["error"]
        assert "access-control-allow-origin" not in answer.headers


def test_the_server_s_own_page_is_not_foreign(client: RawClient) -> None:
    own = f"http://127.0.0.1:{client.port}"
    assert answered(client.request("GET", "/v2", Origin=own)).status == 200


# Large bodies, and leaving


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_of_10_mb_is_413_for_an_ordinary_client(server: Server, *, is_chunked: bool) -> None:
    piece = b" " * (1 << 20)
    with httpx.Client() as client:
        content = (piece for _ in range(10)) if is_chunked else piece * 10
        answer = client.post(f"{server.url}{SCORE}", content=content)
    assert answer.status_code == 413
    assert "8388608" in answer.json()["error"]


def reset(client: RawClient) -> None:
    """Leaves without a goodbye: the peer gets a reset."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


LEAVE: dict[str, Callable[[RawClient], None]] = {
    "reset": reset,
    "close": lambda client: client.socket.close(),
    "half-close": lambda client: client.socket.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.parametrize("at", ["header", "body", "answer", "health", "pipelined"])
def test_a_client_that_leaves_breaks_nothing(server: Server, at: str, leave: Callable[[RawClient], None]) -> None:
    for _ in range(20):
        with RawClient(server.http_port) as client:
            whole = score_bytes(client)
            health = request_bytes(client.port, "GET", LIVE)
            client.send(
                {"header": whole[:40], "body": whole[:-10], "answer": whole, "health": health,
                 "pipelined": (health + whole) * 10}[at]
            )  # fmt: skip
            leave(client)


def test_grpc_clients_that_leave_break_nothing(server: Server) -> None:
    for _ in range(5):
        channel = grpc.insecure_channel(server.grpc, options=(("grpc.use_local_subchannel_pool", 1),))
        many = pb.ScoreBatchRequest(transactions=[pb.Transaction(**transaction()) for _ in range(200)])
        calls = [FraudServiceStub(channel).ScoreBatch.future(many, timeout=10) for _ in range(10)]
        calls[0].cancel()
        channel.close()
