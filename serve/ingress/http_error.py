"""An error as the bytes of an HTTP answer. Hot under overload, when thousands of requests a second share one refusal."""

from __future__ import annotations

from os import urandom

import orjson
from msgspec import Struct

from serve.errors import HeadroomError, Overloaded
from serve.ingress.http_request import head
from serve.ingress.status import error_body, http_status

_PLACE = urandom(16).hex()
"""Stands for the request's id, and has its length. Nobody can send it, so it is nowhere else in what is rendered."""


class RenderedError(Struct, frozen=True, eq=False):
    """An error's answer with a gap for the request's id, which appears in its header and in its body."""

    error: HeadroomError
    status: int
    keep_alive: bool
    parts: tuple[bytes, bytes, bytes]

    @classmethod
    def of(cls, error: HeadroomError, *, keep_alive: bool) -> RenderedError:
        """Renders all but the id."""
        data = _render(error, _PLACE, None, keep_alive=keep_alive)
        before, between, after = data.split(_PLACE.encode(), 2)
        return cls(error, http_status(error), keep_alive, (before, between, after))

    def bytes_for(self, request_id: str, traceparent: str | None) -> bytes:
        """The whole answer to one request."""
        if traceparent is not None or len(request_id) != len(_PLACE) or not request_id.isalnum():
            return _render(self.error, request_id, traceparent, keep_alive=self.keep_alive)
        before, between, after = self.parts
        name = request_id.encode()
        return before + name + between + name + after


def _render(error: HeadroomError, request_id: str, traceparent: str | None, *, keep_alive: bool) -> bytes:
    lines = f"x-request-id: {request_id}\r\n"
    if traceparent is not None:
        lines += f"traceparent: {traceparent}\r\n"
    if isinstance(error, Overloaded):
        lines += f"retry-after: {-(-error.retry_after_ms // 1000)}\r\nretry-after-ms: {error.retry_after_ms}\r\n"
    body = orjson.dumps(error_body(error, request_id))
    return head(http_status(error), "application/json", len(body), lines, keep_alive=keep_alive) + body
