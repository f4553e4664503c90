"""HTTP/1.1 as it may be used and seldom is: pipelining, versions, targets, verbs, expectations, offers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from raw_http import RawAnswer, RawClient, request_bytes
from server import Server
from transactions import transaction

pytestmark = pytest.mark.e2e

SCORE = "/v1/fraud/score"
LIVE = "/v2/health/live"


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    with RawClient(server.http_port) as opened:
        yield opened


def answered(client: RawClient, *, to_head: bool = False) -> RawAnswer:
    answer = client.answer(to_head=to_head)
    assert answer is not None, "closed without an answer"
    return answer


def score_bytes(client: RawClient, **headers: str) -> bytes:
    return request_bytes(client.port, "POST", SCORE, json.dumps(transaction()).encode(), **headers)


def test_pipelined_requests_are_answered_in_order(client: RawClient) -> None:
    ids = [f"r-{i}" for i in range(12)]
    pairs = [
        (score_bytes(client, X_Request_Id=i), request_bytes(client.port, "GET", "/v2", X_Request_Id=i)) for i in ids
    ]
    client.send(b"".join(one + other for one, other in pairs))
    for i in ids:
        first, second = answered(client), answered(client)
        assert first.headers["x-request-id"] == second.headers["x-request-id"] == i
        assert first.status == 200
        assert second.json()["name"] == "headroom"


def test_more_pipelined_requests_than_may_wait_are_never_answered_out_of_order(client: RawClient) -> None:
    ids = [f"r-{i}" for i in range(100)]
    client.send(b"".join(score_bytes(client, X_Request_Id=i) for i in ids))
    for i in ids:
        answer = answered(client)
        if answer.status == 400:
            assert "pipelined" in answer.json()["error"]
            assert i != ids[0], "the refusal overtook the answers"
            assert client.is_closed()
            break
        assert answer.headers["x-request-id"] == i


def test_what_is_wrong_behind_a_good_request_does_not_take_its_answer_away(client: RawClient) -> None:
    client.send(score_bytes(client) + b"\x00 this is no request\r\n\r\n")
    assert answered(client).status == 200
    assert answered(client).status == 400
    assert client.is_closed()


def test_http_1_0_is_answered_and_the_connection_closed(client: RawClient) -> None:
    assert answered(client.send(b"GET /v2 HTTP/1.0\r\n\r\n")).json()["name"] == "headroom"
    assert client.is_closed()


def test_connection_close_is_kept(client: RawClient) -> None:
    answer = answered(client.send(score_bytes(client, Connection="close")))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.is_closed()


def test_expect_100_continue_is_told_to_go_on_before_the_body(client: RawClient) -> None:
    body = json.dumps(transaction()).encode()
    client.request("POST", SCORE, Expect="100-continue", Content_Length=str(len(body)))
    assert answered(client).status == 100
    assert answered(client.send(body)).status == 200


def test_expect_100_continue_of_a_body_that_is_too_large_is_told_so_instead(client: RawClient) -> None:
    client.request("POST", SCORE, Expect="100-continue", Content_Length=str(1 << 30))
    assert answered(client).status == 413


def test_a_target_in_absolute_form_is_understood(client: RawClient) -> None:
    """RFC 9112, 3.2.2: a server must accept it."""
    assert answered(client.request("GET", f"http://127.0.0.1:{client.port}{LIVE}")).status == 200
    body = json.dumps(transaction()).encode()
    assert answered(client.request("POST", f"http://127.0.0.1:{client.port}{SCORE}", body)).status == 200


@pytest.mark.parametrize(("offer", "connection"), [("h2c", "Upgrade, HTTP2-Settings"), ("websocket", "Upgrade")])
def test_an_offer_to_upgrade_is_ignored_and_the_request_answered(
    client: RawClient, offer: str, connection: str
) -> None:
    """RFC 9110, 7.8. Java's HttpClient makes this offer with its first request."""
    offers = {"Upgrade": offer, "Connection": connection, "HTTP2_Settings": "AAMAAABkAAQAAP__"}
    assert answered(client.request("GET", LIVE, **offers)).status == 200
    body = json.dumps(transaction()).encode()
    assert answered(client.request("POST", SCORE, body, **offers)).status == 200
    assert answered(client.request("GET", "/v2")).json()["name"] == "headroom"


def test_an_answer_s_body_is_that_of_its_own_request_whatever_came_before(client: RawClient) -> None:
    """The second of two equal heads is not parsed again."""
    for _ in range(3):
        one = transaction()
        answer = answered(client.request("POST", SCORE, json.dumps(one).encode()))
        assert answer.json()["transaction_id"] == one["transaction_id"]


@pytest.mark.parametrize("target", [SCORE, f"{SCORE}?a=1", "/v1/fraud/%73core", "/v1/fraud/score?x=%2F"])
def test_a_target_may_be_percent_encoded_and_have_a_query(client: RawClient, target: str) -> None:
    assert answered(client.request("POST", target, json.dumps(transaction()).encode())).status == 200


@pytest.mark.parametrize("target", ["/v2/models/fraud%5Fensemble", "/v2/models/fraud_ensemble?a=b"])
def test_a_model_s_name_may_be_percent_encoded(client: RawClient, target: str) -> None:
    assert answered(client.request("GET", target)).json()["name"] == "fraud_ensemble"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "nope\0", "<script>", "ü", "x" * 3000, "%"])
def test_a_strange_model_name_is_404_or_400_and_never_leads_anywhere(client: RawClient, name: str) -> None:
    answer = answered(client.request("GET", f"/v2/models/{quote(name, safe='')}"))
    assert answer.status in (400, 404)
    assert len(answer.body) < 1000
    assert isinstance(answer.json()["error"], str)


def test_head_of_an_error_has_no_body_and_the_connection_goes_on(client: RawClient) -> None:
    for headers in ({"Host": "evil.example"}, {"X_Request_Timeout_Ms": "never"}):
        answer = answered(client.request("HEAD", LIVE, **headers), to_head=True)
        assert answer.status in (400, 403)
        assert answered(client.request("GET", "/v2")).json()["name"] == "headroom"
    for target, status in (("/nowhere", 404), (SCORE, 405)):
        assert answered(client.request("HEAD", target), to_head=True).status == status
        assert answered(client.request("GET", "/v2")).json()["name"] == "headroom"


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", SCORE, "POST"),
        ("OPTIONS", SCORE, "POST"),
        ("PUT", SCORE, "POST"),
        ("DELETE", "/v2/models/fraud/infer", "POST"),
        ("POST", "/v2", "GET"),
        ("PATCH", LIVE, "GET"),
        ("TRACE", LIVE, "GET"),
    ],
)
def test_another_verb_is_405_and_says_which_are_allowed(
    client: RawClient, method: str, target: str, allowed: str
) -> None:
    """RFC 9110, 15.5.6: with an Allow header."""
    answer = answered(client.request(method, target, b""))
    assert answer.status == 405
    assert method in answer.json()["error"]
    assert allowed in [verb.strip() for verb in answer.headers["allow"].split(",")]


@pytest.mark.parametrize("line", [b"BREW /pot HTTP/1.1", b"CONNECT a.example:443 HTTP/1.1", b"get /v2 HTTP/1.1"])
def test_an_unknown_verb_is_refused(client: RawClient, line: bytes) -> None:
    answer = answered(client.send(line + f"\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode()))
    assert answer.status in (400, 405, 501)
