"""An error's bytes: the same with the gap filled as rendered anew."""

from __future__ import annotations

import json

import pytest

from serve.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from serve.ingress.http_error import RenderedError

MADE = "0123456789abcdef" * 2


@pytest.mark.parametrize("error", [
    Overloaded("retry later", reason="budget", retry_after_ms=1234),
    DeadlineExceeded("no answer within the 50.0 ms allowed"),
    InvalidInput("amount is -1", field="amount"),
    NotReady('says "why" \\ not'),
])  # fmt: skip
@pytest.mark.parametrize("request_id", [MADE, "short", 'quo"te', "-" * 32, "x" * 128])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_the_answer_carries_the_id_in_header_and_body(error, request_id, keep_alive):
    rendered = RenderedError.of(error, keep_alive=keep_alive)
    head, _, body = rendered.bytes_for(request_id, None).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert headers["x-request-id"] == request_id
    assert int(headers["content-length"]) == len(body)
    assert ("connection" in headers) is not keep_alive
    answer = json.loads(body)
    assert answer["request_id"] == request_id
    assert answer["error"] == error.message
    if isinstance(error, Overloaded):
        assert headers["retry-after"] == "2"
        assert headers["retry-after-ms"] == "1234"


def test_an_error_that_quotes_digits_of_the_client_s_keeps_them():
    error = InvalidInput("field '" + "0" * 64 + "' is unknown")
    answer = json.loads(RenderedError.of(error, keep_alive=True).bytes_for(MADE, None).partition(b"\r\n\r\n")[2])
    assert answer["error"] == error.message
    assert answer["request_id"] == MADE


def test_a_trace_is_echoed():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert f"traceparent: {trace}\r\n".encode() in RenderedError.of(NotReady("no"), keep_alive=True).bytes_for(
        MADE, trace
    )
