"""An HTTP request's head in, an answer's head out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ingress.http_request import HeadMemory, RequestHead, head, header_lines, status_line
from serve.ingress.status import REASON_PHRASES


def request(target: bytes = b"/", **headers: bytes) -> RequestHead:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return RequestHead(b"GET", target, named, list(named.items()), True)


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"/a", b"/a"), (b"/a?x=1", b"/a"), (b"/a?x=1?y", b"/a"), (b"/a%3Fx", b"/a%3Fx"), (b"?", b""), (b"", b"")],
)
def test_the_path_is_the_target_before_its_query(target, path):
    assert request(target).path == path


@given(st.binary())
def test_any_header_value_is_read_as_latin_1(value):
    read = request(x_id=value).header(b"x-id")
    assert read is not None
    assert read.encode("latin-1") == value


def test_a_header_that_was_not_sent_is_none():
    assert request().header(b"x-id") is None


@pytest.mark.parametrize("code", sorted(REASON_PHRASES))
def test_a_known_status_has_its_phrase(code):
    assert status_line(code) == f"HTTP/1.1 {code} {REASON_PHRASES[code]}\r\n"


def test_an_unknown_status_still_has_a_valid_line():
    assert status_line(299) == "HTTP/1.1 299 Status\r\n"


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("headers", [(), (("x-request-id", "r1"), ("retry-after", "1"))])
def test_a_head_ends_with_an_empty_line_and_says_whether_the_connection_stays(headers, keep_alive):
    data = head(200, "application/json", 17, header_lines(headers), keep_alive=keep_alive)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1
    lines = data.decode().split("\r\n")[1:-2]
    sent = dict(line.split(": ", 1) for line in lines)
    assert (sent["content-type"], sent["content-length"]) == ("application/json", "17")
    assert ("connection" in sent) is not keep_alive
    assert {name: sent[name] for name, _ in headers} == dict(headers)


def parsed(data: bytes) -> RequestHead:
    """What a parser makes of `data`, one plain request."""
    first, *lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    method, target, _ = first.split(b" ")
    raw = [(name.lower(), value) for name, value in (line.split(b": ") for line in lines)]
    return RequestHead(method, target, dict(raw), raw, True)


ONE = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


def remembering(data: bytes) -> tuple[HeadMemory, RequestHead]:
    memory, known = HeadMemory(), parsed(data)
    memory.remember(data, known)
    return memory, known


def test_a_head_that_was_seen_before_is_not_parsed_again():
    memory, known = remembering(ONE)
    assert memory.find(ONE) == (known, b"abc")
    assert memory.find(ONE[:-3] + b"xyz") == (known, b"xyz")
    without_body = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
    memory, known = remembering(without_body)
    assert memory.find(without_body) == (known, b"")


@pytest.mark.parametrize(
    "data", [ONE[:-1], ONE + b"d", ONE + ONE, ONE[:20], b"", b"\r\n\r\n", ONE.lower(), b"\r\n" + ONE]
)
def test_what_is_not_exactly_one_request_of_a_known_head_is_left_to_the_parser(data):
    assert remembering(ONE)[0].find(data) is None


@pytest.mark.parametrize(
    "data",
    [
        ONE.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        ONE.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"),
        ONE.replace(b"Content-Length: 3", b"Content-Length: 4"),
        ONE.replace(b"Host: a", b"Host: a\r\nX: " + b"x" * 4096),
    ],
)
def test_a_head_that_is_not_plain_or_too_long_is_not_remembered(data):
    assert remembering(data)[0].find(data) is None


def test_a_head_whose_lines_end_otherwise_than_the_parser_counted_is_not_remembered():
    memory = HeadMemory()
    memory.remember(ONE.replace(b"Host: a\r\n", b"Host: a\nB: b\r\n"), parsed(ONE))
    memory.remember(ONE.replace(b"Host: a\r\n", b"Host: a\r\nB: b\r\n"), parsed(ONE))
    assert memory._known == {}


def test_the_memory_is_bounded():
    memory = HeadMemory()
    for i in range(2000):
        data = ONE.replace(b"/a", b"/%d" % i)
        memory.remember(data, parsed(data))
    assert len(memory._known) <= 512
    assert memory.find(data) is not None
