"""An HTTP request's head in, an answer's head out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ingress.http_request import RequestHead, head, status_line
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
    data = head(200, "application/json", 17, headers, keep_alive=keep_alive)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1
    lines = data.decode().split("\r\n")[1:-2]
    sent = dict(line.split(": ", 1) for line in lines)
    assert (sent["content-type"], sent["content-length"]) == ("application/json", "17")
    assert ("connection" in sent) is not keep_alive
    assert {name: sent[name] for name, _ in headers} == dict(headers)
