"""Every bound of the edge on a server whose bounds are tiny: its own answer, its own name in the metrics, and the
others are answered meanwhile.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest
from raw_http import RawAnswer, RawClient, request_bytes
from server import WIDE_BUDGETS, Server, wait_until
from transactions import transaction

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from protos.headroom.fraud.v1.fraud_pb2_grpc import FraudServiceStub

pytestmark = pytest.mark.e2e

MAX_BODY_BYTES = 256 << 10
MAX_HEADER_BYTES = 4096
MAX_CONNECTIONS = 16
MAX_CONCURRENT = 4
TIMEOUT_S = 1.0
IDLE_S = 2.0
AGE_S = 10.0
SLACK_S = 3.0
"""Connections are looked over twice a second; the machine may be busy."""
SCORE = "/v1/fraud/score"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("tiny"),
        limits={
            "max_body_bytes": MAX_BODY_BYTES,
            "max_header_bytes": MAX_HEADER_BYTES,
            "max_connections": MAX_CONNECTIONS,
            "max_concurrent_requests": MAX_CONCURRENT,
            "header_timeout_s": TIMEOUT_S,
            "body_timeout_s": TIMEOUT_S,
            "write_timeout_s": TIMEOUT_S,
            "idle_timeout_s": IDLE_S,
            "max_connection_age_s": AGE_S,
        },
        **WIDE_BUDGETS,
    )
    try:
        yield server.start()
    finally:
        server.stop()


class Rejections:
    """Counts a reason's rejections from now on."""

    def __init__(self, server: Server, reason: str) -> None:
        self._server = server
        self._reason = reason
        self._before = self._total()

    def _total(self) -> float:
        return self._server.metric("headroom_rejections_total", protocol="http", reason=self._reason)

    @property
    def num(self) -> float:
        return self._total() - self._before


def assert_answers_others(server: Server) -> None:
    status, answer, _ = server.post(SCORE, transaction())
    assert status == 200, answer


def refused(answer: RawAnswer | None, status: int) -> str:
    """The text of a refusal that ends its connection."""
    assert answer is not None
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    body = answer.json()
    assert body["request_id"]
    return str(body["error"])


def test_a_body_that_says_it_is_too_large_is_413_before_it_is_sent(tiny: Server) -> None:
    rejections = Rejections(tiny, "body_size")
    with RawClient(tiny.http_port) as client:
        client.request("POST", SCORE, Content_Length=str(MAX_BODY_BYTES + 1))
        assert str(MAX_BODY_BYTES) in refused(client.answer(), 413)
        assert client.is_closed()
    assert rejections.num == 1


def test_a_chunked_body_is_413_as_soon_as_it_is_too_large(tiny: Server) -> None:
    rejections = Rejections(tiny, "body_size")
    with RawClient(tiny.http_port) as client:
        client.request("POST", SCORE, Transfer_Encoding="chunked")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        client.send(chunk * (MAX_BODY_BYTES // 0x10000) + b"1\r\n \r\n")
        assert str(MAX_BODY_BYTES) in refused(client.answer(), 413)
    assert rejections.num == 1


def test_a_body_of_just_the_limit_is_read(tiny: Server) -> None:
    body = json.dumps(transaction()).encode()
    status, answer, _ = tiny.post(SCORE, body + b" " * (MAX_BODY_BYTES - len(body)))
    assert status == 200, answer


def test_a_small_body_that_unfolds_into_a_large_one_is_413(tiny: Server) -> None:
    import gzip

    bomb = gzip.compress(b" " * 100 * MAX_BODY_BYTES)
    assert len(bomb) < MAX_BODY_BYTES
    status, answer, _ = tiny.post("/v2/models/creditcard/infer", bomb, Content_Encoding="gzip")
    assert (status, answer["kind"]) == (413, "too_large")


@pytest.mark.parametrize("kind", ["one long header", "many headers", "long target", "never ends"])
def test_a_header_over_the_limit_is_431(tiny: Server, kind: str) -> None:
    long = "x" * MAX_HEADER_BYTES
    sent = {
        "one long header": request_bytes(tiny.http_port, "GET", "/v2", X_Long=long),
        "many headers": request_bytes(tiny.http_port, "GET", "/v2", **{f"X_{i}": "y" for i in range(1000)}),
        "long target": request_bytes(tiny.http_port, "GET", f"/{long}"),
        "never ends": request_bytes(tiny.http_port, "GET", "/v2", X_Long=long).rstrip(b"\r\n"),
    }[kind]
    rejections = Rejections(tiny, "header_size")
    with RawClient(tiny.http_port) as client:
        assert str(MAX_HEADER_BYTES) in refused(client.send(sent).answer(), 431)
    assert rejections.num == 1


def test_what_follows_a_chunked_body_is_bounded_as_a_header_is(tiny: Server) -> None:
    rejections = Rejections(tiny, "header_size")
    with RawClient(tiny.http_port) as client:
        client.request("POST", SCORE, Transfer_Encoding="chunked").send(b"2\r\n{}\r\n0\r\nX-Long: ")
        for _ in range(1000):
            if client.has_something_to_read(0.01):
                break
            client.send(b"x" * 1024)
        refused(client.answer(), 431)
    assert rejections.num == 1


def test_a_connection_too_many_is_503_and_one_that_ends_makes_room(tiny: Server) -> None:
    wait_until(lambda: tiny.metric("headroom_connections", protocol="http") == 0, 5, "no connection is open")
    rejections = Rejections(tiny, "connections")
    with ExitStack() as held:
        clients = [held.enter_context(RawClient(tiny.http_port)) for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            answer = client.request("GET", "/v2/health/live").answer()
            assert answer is not None
            assert answer.status == 200
        extra = held.enter_context(RawClient(tiny.http_port))
        answer = extra.answer()
        assert str(MAX_CONNECTIONS) in refused(answer, 503)
        assert answer is not None
        assert answer.json()["reason"] == "connections"
        assert int(answer.headers["retry-after"]) > 0
        assert rejections.num == 1
        clients[0].socket.close()
        wait_until(tiny.is_ready, 5, "a connection that ended made room")


def test_requests_too_many_at_once_are_503_and_the_rest_are_answered(tiny: Server) -> None:
    rejections = Rejections(tiny, "concurrency")
    heavy = json.dumps({"transactions": [transaction() for _ in range(1000)]}).encode()

    def statuses() -> list[int]:
        with ExitStack() as held:
            clients = [held.enter_context(RawClient(tiny.http_port)) for _ in range(3 * MAX_CONCURRENT)]
            for client in clients:
                client.request("POST", "/v1/fraud/score:batch", heavy)
            answers = [client.answer() for client in clients]
        for answer in answers:
            assert answer is not None
            if answer.status == 503:
                assert answer.json()["reason"] == "concurrency"
                assert int(answer.headers["retry-after"]) >= 0
        return [answer.status for answer in answers if answer is not None]

    found = wait_until(lambda: 503 in (got := statuses()) and got, 20, "more than the limit in flight")
    assert set(found) <= {200, 429, 503, 504}
    assert rejections.num >= found.count(503)
    wait_until(lambda: tiny.metric("headroom_requests_in_flight", protocol="http") == 0, 5, "nothing in flight")
    assert_answers_others(tiny)


def drip(client: RawClient, data: bytes, until_s: float) -> None:
    """Sends a byte now and then until the server has had enough."""
    pause = threading.Event()
    for i in range(len(data)):
        if time.monotonic() > until_s:
            return
        try:
            client.send(data[i : i + 1])
        except OSError:
            return
        pause.wait(0.1)


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_client_that_sends_byte_by_byte_is_408_in_time_and_the_others_do_not_notice(tiny: Server, part: str) -> None:
    rejections = Rejections(tiny, f"{part}_timeout")
    header = request_bytes(tiny.http_port, "POST", SCORE, Content_Length="2000", X_Padding="y" * 200)
    with ExitStack() as held:
        slow = [held.enter_context(RawClient(tiny.http_port)) for _ in range(MAX_CONNECTIONS - 4)]
        began_s = time.monotonic()
        for client in slow:
            client.send(header[:20] if part == "header" else header)
        rest = header[20:] if part == "header" else b" " * 2000
        dripping = [
            threading.Thread(target=drip, args=(client, rest, began_s + TIMEOUT_S + SLACK_S)) for client in slow
        ]
        for thread in dripping:
            thread.start()
        assert_answers_others(tiny)
        for client in slow:
            assert part in refused(client.answer(), 408)
        took_s = time.monotonic() - began_s
        for thread in dripping:
            thread.join()
    assert TIMEOUT_S <= took_s < TIMEOUT_S + SLACK_S
    assert rejections.num == len(slow)


@pytest.mark.parametrize("requests_before", [0, 1])
def test_an_idle_connection_is_closed_without_an_answer(tiny: Server, requests_before: int) -> None:
    with RawClient(tiny.http_port) as client:
        for _ in range(requests_before):
            client.request("GET", "/v2/health/live").answer()
        began_s = time.monotonic()
        assert client.is_closed()
        assert IDLE_S - 0.1 <= time.monotonic() - began_s < IDLE_S + SLACK_S


def test_a_client_that_does_not_read_its_answers_is_cut_off_and_the_others_do_not_notice(tiny: Server) -> None:
    rejections = Rejections(tiny, "write_timeout")

    def answered() -> float:
        return tiny.metric("headroom_requests_total", protocol="http", endpoint="/docs")

    with RawClient(tiny.http_port, receive_buffer_bytes=4096) as client:
        for _ in range(200):
            expected = answered() + 20
            client.send(request_bytes(client.port, "GET", "/docs") * 20)
            wait_until(lambda e=expected: answered() >= e or rejections.num, 20, "answered or cut off")
            assert_answers_others(tiny)
            if rejections.num:
                break
        assert rejections.num == 1, "the server answers although nobody reads"
    wait_until(lambda: tiny.metric("headroom_requests_in_flight", protocol="http") == 0, 5, "nothing in flight")


def test_a_connection_that_is_old_is_told_to_close_with_an_answer(tiny: Server) -> None:
    with RawClient(tiny.http_port) as client:
        began_s = time.monotonic()
        pause = threading.Event()
        while True:
            answer = client.request("GET", "/v2/health/live").answer()
            assert answer is not None
            assert answer.status == 200
            if "connection" in answer.headers:
                break
            pause.wait(0.1)
        assert AGE_S - 0.1 <= time.monotonic() - began_s < AGE_S + SLACK_S
        assert answer.headers["connection"] == "close"
        assert client.is_closed()


def test_a_grpc_message_over_the_limit_is_refused_and_the_channel_goes_on(tiny: Server) -> None:
    with grpc.insecure_channel(tiny.grpc) as channel:
        stub = FraudServiceStub(channel)
        large = pb.ScoreBatchRequest(transactions=[pb.Transaction(customer_id="x" * 96)] * 5000)
        assert large.ByteSize() > MAX_BODY_BYTES
        with pytest.raises(grpc.RpcError) as too_large:
            stub.ScoreBatch(large, timeout=10)
        assert too_large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Score(pb.ScoreRequest(transaction=pb.Transaction(**transaction())), timeout=10).transaction_id


def test_grpc_metadata_over_the_limit_is_refused(tiny: Server) -> None:
    message = pb.ScoreRequest(transaction=pb.Transaction(**transaction()))
    metadata = tuple((f"x-{i}", "y" * 1000) for i in range(40))
    with grpc.insecure_channel(tiny.grpc) as channel, pytest.raises(grpc.RpcError) as too_large:
        FraudServiceStub(channel).Score(message, timeout=10, metadata=metadata)
    assert too_large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpc_calls_too_many_at_once_are_refused_by_name(tiny: Server) -> None:
    heavy = pb.ScoreBatchRequest(transactions=[pb.Transaction(**transaction()) for _ in range(1000)])
    with grpc.insecure_channel(tiny.grpc) as channel:
        stub = FraudServiceStub(channel)

        def reasons() -> list[str]:
            calls = [stub.ScoreBatch.future(heavy, timeout=10) for _ in range(4 * MAX_CONCURRENT)]
            failed = [call for call in calls if call.exception() is not None]
            return [dict(call.trailing_metadata()).get("error-reason", call.code().name) for call in failed]

        wait_until(lambda: "concurrency" in reasons(), 20, "more than the limit in flight")
