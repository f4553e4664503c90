"""Transactions, decisions and requests that the tests of the fraud codecs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from serve.batching.arrival import Decoded
from serve.errors import InvalidInput
from serve.ingress.http_request import HttpRequest, RequestHead
from serve.pipelines.fraud.contract import RULES, Decision, Reason

GOOD: dict[str, Any] = {
    "transaction_id": "t1",
    "customer_id": "c1",
    "terminal_id": "m1",
    "amount": 12.5,
    "timestamp": 1_700_000_000,
}
FULL: dict[str, Any] = {
    **GOOD,
    "currency": "EUR",
    "merchant_category": "5411",
    "channel": "chip",
    "latitude": 48.2,
    "longitude": 16.4,
}
DECISION = Decision(
    "t1", 0.75, "decline", "critical", {"m": 0.75}, [Reason("amount", None, 0.5, "amount of 12.50")], ["reasons"], "m:1"
)
MAX_MESSAGE_CHARS = 1000

# What is wrong with a field that JSON can carry, and gRPC's and OIP's messages mostly can too.
BAD_VALUES: list[tuple[str, Any]] = [
    *((name, value) for name in ("transaction_id", "customer_id", "terminal_id") for value in ("", "x" * 97)),
    *(("amount", value) for value in (-0.01, -1e308, 1e9 + 1, 1e308)),
    *(("timestamp", value) for value in (0, -1, 946_684_799, 2**36, 1e300)),
    *(("currency", value) for value in ("", "eur", "EURO", "EU", "EUR\n", "ＥＵＲ")),
    *((name, value) for name in ("merchant_category", "channel") for value in ("", "x" * 33)),
    *(("latitude", value) for value in (-90.1, 90.1, 1e308)),
    *(("longitude", value) for value in (-180.1, 180.1)),
]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def http(body: Any, **headers: bytes) -> HttpRequest:
    """A request with this body: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    head = RequestHead(b"POST", b"/", named, list(named.items()), True)
    return HttpRequest(None, head, data, 0)  # type: ignore[arg-type]


def assert_is_useful(error: Any, field: str | None = None) -> None:
    """An InvalidInput that names the field, says what is allowed where there are words for it, and can be sent."""
    assert type(error) is InvalidInput
    assert len(error.message) <= MAX_MESSAGE_CHARS
    error.message.encode()
    if error.field is not None:
        error.field.encode()
        assert error.field in error.message
    if field is not None:
        assert error.field == field
        allowed = RULES.get(field.rpartition(".")[2])
        assert allowed is None or "missing" in error.message or allowed in error.message


def outcome_of(call: Callable[[Any], Decoded], payload: Any) -> Any:
    """The decoded items, or the InvalidInput that was raised instead; anything else is raised."""
    try:
        return list(call(payload).items)
    except InvalidInput as error:
        return error


scalars = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8) | st.just("x" * 200)
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
mangled = st.one_of(
    st.dictionaries(st.sampled_from([*FULL, "x", ""]) | st.text(max_size=4), json_values, max_size=8),
    st.tuples(st.sampled_from(list(FULL)), json_values).map(lambda change: {**FULL, change[0]: change[1]}),
    json_values,
)
"""JSON that is nearly, or not at all, a transaction."""
