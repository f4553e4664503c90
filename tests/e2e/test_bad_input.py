"""A thousand wrong bodies per endpoint, and wrong values somebody thought of: each is refused in words that name the
field, nothing is a 5xx, and the server is as ready afterwards as before.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from bad_bodies import (
    as_body,
    good_infer,
    good_transaction,
    is_json,
    wrong_binary_infers,
    wrong_bodies,
    wrong_infers,
    wrong_lists,
    wrong_messages,
    wrong_transactions,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server import Server
from transactions import new_id, transaction

from protos.headroom.fraud.v1 import fraud_pb2 as pb

pytestmark = pytest.mark.e2e

SCORE, BATCH, INFER = "/v1/fraud/score", "/v1/fraud/score:batch", "/v2/models/creditcard/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
GRPC_SCORE = "/headroom.fraud.v1.FraudService/Score"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"

thousand = settings(
    max_examples=1000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
Call = Callable[[str, bytes], grpc.RpcError | None]


@pytest.fixture(autouse=True, scope="module")
def _server_is_as_before(server: Server) -> Iterator[None]:
    """No bug was met on the way, none answered and none logged, and the server is ready."""

    def num_bugs() -> float:
        over_http = server.metric("headroom_requests_total", protocol="http", status="500")
        return over_http + server.metric("headroom_requests_total", protocol="grpc", status="13")

    begin, before = server.log_path.stat().st_size, num_bugs()
    yield
    assert server.is_ready()
    assert num_bugs() == before
    with server.log_path.open("rb") as log:
        log.seek(begin)
        logged = log.read()
    assert b"Traceback" not in logged
    assert b'"level":"error"' not in logged


class Http:
    """Posts over one connection, as long as the server keeps it."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)

    def __call__(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        self._connection.request("POST", path, body, headers or {})
        answer = self._connection.getresponse()
        text = answer.read()
        assert b"Traceback" not in text
        return answer.status, json.loads(text)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def post(server: Server) -> Iterator[Http]:
    opened = Http(server)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def call(server: Server) -> Iterator[Call]:
    """A unary call with any bytes as its message; gives its error."""

    def send(channel: grpc.Channel, method: str, message: bytes) -> grpc.RpcError | None:
        try:
            channel.unary_unary(method)(message, timeout=30)
        except grpc.RpcError as error:
            return error
        return None

    with grpc.insecure_channel(server.grpc) as channel:
        yield partial(send, channel)


def assert_refused(status: int, answer: Any, *, names_field: bool) -> None:
    assert status == 400, answer
    assert answer["kind"] == "invalid_input"
    assert answer["request_id"]
    assert len(answer["error"]) < 2000
    if names_field and not answer["error"].startswith("the body "):
        assert answer["field"] in answer["error"]


# A thousand each


@thousand
@given(body=wrong_bodies(wrong_transactions(), good_transaction()))
def test_wrong_bodies_of_score_are_400_and_name_the_field(post: Http, body: bytes) -> None:
    assert_refused(*post(SCORE, body), names_field=is_json(body))


@thousand
@given(body=wrong_bodies(wrong_lists(), {"transactions": [good_transaction()]}))
def test_wrong_bodies_of_a_batch_are_400_and_name_the_field(post: Http, body: bytes) -> None:
    assert_refused(*post(BATCH, body), names_field=is_json(body))


@thousand
@given(items=st.lists(wrong_transactions(), min_size=1, max_size=4))
def test_wrong_items_of_a_batch_fail_alone_and_name_their_field(post: Http, items: list[Any]) -> None:
    good = transaction()
    status, answer = post(BATCH, as_body({"transactions": [good, *items]}))
    assert status == 200, answer
    assert answer["results"][0]["transaction_id"] == good["transaction_id"]
    for i, result in enumerate(answer["results"][1:], start=1):
        assert result["error"]["kind"] == "invalid_input"
        assert result["error"]["field"].startswith(f"transactions[{i}]")
        assert result["error"]["field"] in result["error"]["message"]


@thousand
@given(body=wrong_bodies(wrong_infers(), good_infer()))
def test_wrong_bodies_of_infer_are_400_and_name_the_field(post: Http, body: bytes) -> None:
    assert_refused(*post(INFER, body), names_field=is_json(body))


@thousand
@given(case=wrong_binary_infers() | st.tuples(st.binary(max_size=300), st.integers(1, 400).map(str)))
def test_wrong_binary_bodies_of_infer_are_400(post: Http, case: tuple[bytes, str]) -> None:
    body, header_length = case
    assert_refused(*post(INFER, body, {HEADER_LENGTH: header_length}), names_field=False)


@settings(thousand, max_examples=300)
@given(body=st.binary(max_size=200), encoding=st.sampled_from(["gzip", "deflate"]))
def test_bodies_that_are_not_compressed_as_they_say_are_400(post: Http, body: bytes, encoding: str) -> None:
    assert_refused(*post(INFER, body, {"Content-Encoding": encoding}), names_field=False)


@thousand
@given(message=st.binary(max_size=200))
def test_random_messages_of_grpc_score_are_invalid_argument(call: Call, message: bytes) -> None:
    error = call(GRPC_SCORE, message)
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@thousand
@given(message=st.binary(max_size=200) | wrong_messages())
def test_wrong_messages_of_grpc_infer_are_refused(call: Call, message: bytes) -> None:
    error = call(GRPC_INFER, message)
    assert error is not None
    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error


@thousand
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3),
    path=st.sampled_from([SCORE, BATCH, INFER]),
)
def test_good_bodies_with_wrong_bytes_are_answered_or_refused(
    post: Http, flips: list[tuple[int, int]], path: str
) -> None:
    good = {SCORE: transaction(), BATCH: {"transactions": [transaction()] * 2}, INFER: good_infer()}[path]
    body = bytearray(as_body(good))
    for at, byte in flips:
        body[at % len(body)] = byte
    status, answer = post(path, bytes(body))
    assert status in (200, 400), answer


# Values somebody thought of

FAR: dict[str, Any] = {
    "before 2000": "1999-12-31T23:59:59Z",
    "before 1970": "1900-01-01T00:00:00Z",
    "year 1": "0001-01-01T00:00:00+14:00",
    "year 9999": "9999-12-31T23:59:59-12:00",
    "next week": "2999-01-01T00:00:00Z",
    "zero": 0,
    "negative": -1,
    "milliseconds": 1_533_724_260_000,
    "2**63": 2**63,
    "1e308": 1e308,
}


@pytest.mark.parametrize("when", FAR.values(), ids=FAR)
def test_a_time_far_away_is_refused_and_named(post: Http, when: Any) -> None:
    status, answer = post(SCORE, as_body(transaction(timestamp=when)))
    assert (status, answer.get("field")) == (400, "timestamp"), answer


DEEP = b"[" * 100_000 + b"]" * 100_000
RAW: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"amount": NaN}', "JSON"),
    "Infinity": (b'{"amount": Infinity}', "JSON"),
    "an amount beyond doubles": (b'{"amount": 1e999}', "amount"),
    "a huge amount": (b'{"amount": 1e10}', "amount"),
    "an integer of 4,000 digits": (b'{"amount": 1' + b"0" * 4000 + b"}", "amount"),
    "half a surrogate pair": (rb'{"transaction_id": "\ud800"}', "JSON"),
    "half a surrogate pair in bytes": (b'{"transaction_id": "\xed\xa0\x80"}', "JSON"),
    "half a character in a key": (b'{"amoun\xc3": 1}', "JSON"),
    "deep lists": (DEEP, "body"),
    "deep objects": (b'{"a":' * 100_000, "a"),
    "a deep unknown field": (b'{"a":' + DEEP + b"}", "a"),
    "a deep known field": (b'{"amount":' + DEEP + b"}", "amount"),
    "nothing": (b"", "JSON"),
    "null": (b"null", "body"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "JSON"),
    "two documents": (as_body(good_transaction()) + b" {}", "JSON"),
}


@pytest.mark.parametrize(("body", "named"), RAW.values(), ids=RAW)
def test_json_at_its_edges_is_refused(post: Http, body: bytes, named: str) -> None:
    status, answer = post(SCORE, body)
    assert status == 400, answer
    assert named in answer["error"]


DEEP_BODIES: dict[str, bytes] = {
    "lists": DEEP,
    "objects": b'{"a":' * 100_000,
    "transactions": b'{"transactions":' + DEEP + b"}",
    "a field of a transaction": b'{"transactions":[{"amount":' + DEEP + b"}]}",
    "an unknown field": b'{"transactions":[{"a":' + DEEP + b"}]}",
    "inputs": b'{"inputs":' + DEEP + b"}",
    "data": b'{"inputs":[{"name":"input__0","shape":[1,30],"datatype":"FP32","data":' + DEEP + b"}]}",
    "parameters": b'{"inputs":[],"parameters":{"a":' + DEEP + b"}}",
}


@pytest.mark.parametrize("path", [BATCH, INFER, "/v2/models/fraud/infer", "/v2/repository/index"])
@pytest.mark.parametrize("body", DEEP_BODIES.values(), ids=DEEP_BODIES)
def test_deep_nesting_is_refused_everywhere(post: Http, path: str, body: bytes) -> None:
    status, answer = post(path, body)
    assert status in (200, 400), answer


@pytest.mark.parametrize("amount", [0, 0.0, 5e-324, 1e9, 999_999_999.9999])
def test_amounts_at_their_bounds_are_scored(post: Http, amount: float) -> None:
    status, answer = post(SCORE, as_body(transaction(amount=amount)))
    assert status == 200, answer
    assert 0 <= answer["fraud_probability"] <= 1


@pytest.mark.parametrize("text", ["é" * 96, "\u0000", "'; DROP TABLE customers; --", "../../x", "🂡" * 96, "\u202e"])
def test_ids_may_be_any_text(post: Http, text: str) -> None:
    made = transaction(customer_id=text, terminal_id=text)
    status, answer = post(SCORE, as_body(made))
    assert status == 200, answer
    assert answer["transaction_id"] == made["transaction_id"]


def test_duplicates_of_a_batch_have_one_decision_whatever_else_they_hold(post: Http) -> None:
    one = transaction(transaction_id=new_id("same"))
    bad_one = {**one, "amount": -1}
    status, answer = post(BATCH, as_body({"transactions": [bad_one, one, {**one, "amount": 1e6}, one]}))
    assert status == 200
    assert answer["results"][0]["error"]["field"] == "transactions[0].amount"
    assert answer["results"][1] == answer["results"][2] == answer["results"][3]


@pytest.mark.parametrize("num", [0, 1025])
def test_a_batch_of_none_or_too_many_is_refused(post: Http, num: int) -> None:
    status, answer = post(BATCH, as_body({"transactions": [{}] * num}))
    assert (status, answer["field"]) == (400, "transactions")
    assert "1 to 1024" in answer["error"]


def test_a_content_encoding_that_is_not_offered_is_415(post: Http) -> None:
    """RFC 9110, 15.5.16."""
    status, answer = post(INFER, b"x", {"Content-Encoding": "br"})
    assert status == 415, answer
    assert "gzip" in answer["error"]


def test_a_grpc_text_that_is_not_utf_8_is_invalid_argument(call: Call) -> None:
    message = pb.ScoreRequest(transaction=pb.Transaction(**transaction(customer_id="ab"))).SerializeToString()
    error = call(GRPC_SCORE, message.replace(b"ab", b"\xff\xfe"))
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
