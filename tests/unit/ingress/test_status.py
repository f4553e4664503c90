"""Every error has a status in both protocols, and its body names what the caller can act on."""

from __future__ import annotations

import grpc
import orjson
import pytest

from serve import errors
from serve.errors import HeadroomError, InvalidInput, Overloaded
from serve.ingress.status import GRPC_STATUS, HTTP_STATUS, REASON_PHRASES, error_body, grpc_status, http_status


def made(kind: type[HeadroomError]) -> HeadroomError:
    return kind("text", reason="budget") if kind is Overloaded else kind("text")


ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeadroomError)]


@pytest.mark.parametrize("kind", ALL, ids=[kind.__name__ for kind in ALL])
def test_every_error_has_a_status_in_both_protocols(kind):
    assert 400 <= http_status(made(kind)) < 600
    assert grpc_status(made(kind)) in {code.value[0] for code in grpc.StatusCode} - {0}


def test_the_tables_have_no_entry_without_an_error():
    kinds = {kind.kind for kind in ALL}
    assert set(HTTP_STATUS) == kinds
    assert set(GRPC_STATUS) == kinds


def test_every_status_has_a_phrase():
    assert {200, *HTTP_STATUS.values()} <= set(REASON_PHRASES)


@pytest.mark.parametrize(
    ("reason", "status"),
    [("queue_full", 429), ("budget", 429), ("stream_backlog", 429), ("concurrency", 503), ("connections", 503)],
)
def test_overload_of_one_queue_is_429_and_of_the_whole_server_503(reason, status):
    assert http_status(Overloaded("x", reason=reason)) == status
    assert grpc_status(Overloaded("x", reason=reason)) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest.mark.parametrize(
    ("error", "http", "code"),
    [
        (InvalidInput("x"), 400, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("x"), 404, grpc.StatusCode.NOT_FOUND),
        (errors.Forbidden("x"), 403, grpc.StatusCode.PERMISSION_DENIED),
        (errors.TooLarge("x"), 413, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.Unsupported("x"), 501, grpc.StatusCode.UNIMPLEMENTED),
        (errors.DeadlineExceeded("x"), 504, grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.Cancelled("x"), 499, grpc.StatusCode.CANCELLED),
        (errors.NotReady("x"), 503, grpc.StatusCode.UNAVAILABLE),
        (errors.ModelLoadError("x"), 503, grpc.StatusCode.UNAVAILABLE),
        (errors.DependencyFailed("x"), 503, grpc.StatusCode.UNAVAILABLE),
        (errors.Internal(), 500, grpc.StatusCode.INTERNAL),
    ],
)
def test_the_two_tables_say_the_same(error, http, code):
    assert (http_status(error), grpc_status(error)) == (http, code.value[0])


def test_a_body_has_the_text_the_kind_and_the_request():
    body = error_body(errors.NotFound("no such model"), "r1")
    assert body == {"error": "no such model", "kind": "not_found", "request_id": "r1"}


def test_a_body_names_the_field_where_there_is_one():
    assert error_body(InvalidInput("x", field="amount"), "r")["field"] == "amount"
    assert "field" not in error_body(InvalidInput("x"), "r")


def test_a_body_of_overload_says_which_bound_and_when_to_retry():
    body = error_body(Overloaded("x", reason="queue_full", retry_after_ms=7), "r")
    assert (body["reason"], body["retry_after_ms"]) == ("queue_full", 7)
    assert orjson.loads(orjson.dumps(body)) == body


def test_the_text_of_a_bug_of_ours_is_fixed():
    assert "request id" in errors.Internal().message
