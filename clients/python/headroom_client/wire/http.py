"""HTTP statuses and headers in the client's words.

In: a response's status, headers and body. Out: a Reply, or the error that it stands for. Called by the HTTP clients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headroom_client.budgets import PipelineBudget, parse_budgets
from headroom_client.errors import error_class
from headroom_client.timing import parse_server_timing
from headroom_client.wire.operation import Operation, Outcome, Reply

RETRYABLE_STATUSES = frozenset({429, 503})

_KINDS = {
    400: "invalid_input",
    401: "forbidden",
    403: "forbidden",
    404: "not_found",
    405: "unsupported",
    413: "too_large",
    415: "unsupported",
    422: "invalid_input",
    429: "overloaded",
    500: "internal",
    501: "unsupported",
    502: "dependency_failed",
    503: "not_ready",
    504: "deadline_exceeded",
}
"""Used where the body names no kind: an answer from a gateway on the way. Other statuses are unexpected answers."""


def http_outcome(status: int, headers: Mapping[str, str], body: bytes, request_id: str) -> Outcome:
    """Reads one response; header names are in lower case, `request_id` is the one that was sent."""
    request_id = headers.get("x-request-id", request_id)
    if status == 200:
        return Reply(body, request_id, parse_server_timing(headers.get("server-timing")))
    told = _error_body(body)
    kind = _text(told, "kind") or _KINDS.get(status, "unexpected_answer")
    return error_class(kind)(
        _text(told, "error") or f"the server answered with HTTP status {status}",
        kind=kind,
        field=_text(told, "field"),
        request_id=request_id,
        retry_after_ms=_retry_after_ms(headers),
        is_retryable=status in RETRYABLE_STATUSES,
    )


def _error_body(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _text(told: Mapping[str, Any], name: str) -> str | None:
    value = told.get(name)
    return value if isinstance(value, str) and value else None


def _retry_after_ms(headers: Mapping[str, str]) -> float | None:
    for name, ms_per_unit in (("retry-after-ms", 1.0), ("retry-after", 1_000.0)):
        wait = non_negative(headers.get(name))
        if wait is not None:
            return wait * ms_per_unit
    return None


def non_negative(text: str | None) -> float | None:
    """The number in a header, or None: absent, not a number (Retry-After may be a date) or below 0."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _nothing(_: None) -> bytes:
    return b""


def _decode_budgets(reply: Reply) -> dict[str, PipelineBudget]:
    return parse_budgets(json.loads(reply.body))


def _decode_ready(_: Reply) -> bool:
    return True


BUDGETS: Operation[None, dict[str, PipelineBudget]] = Operation("/v2/budgets", _nothing, _decode_budgets)
READY: Operation[None, bool] = Operation("/v2/health/ready", _nothing, _decode_ready, is_repeatable=False)
