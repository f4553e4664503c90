"""What a caller may say about one call, and what every try of it then carries.

Made by the pipelines' interfaces; read by the clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict
from uuid import uuid4

from headroom_client.flow import checked_timeout_ms


class CallOptions(TypedDict, total=False):
    """Keyword arguments that every method takes.

    `timeout_ms` replaces the client's own for this call, tries and waits included; `request_id` is 1 to 128 visible
    ASCII characters and new by default; `traceparent` is a W3C trace context.
    """

    timeout_ms: float | None
    request_id: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class CallContext:
    """Options with the defaults filled in. All tries share the request id, so the server's log shows them as one."""

    timeout_ms: float
    request_id: str
    headers: Mapping[str, str]
    """Under lower-case names."""


def call_context(options: CallOptions, default_timeout_ms: float, headers: Mapping[str, str]) -> CallContext:
    """Fills in the defaults; `headers` go with every call. Raises ValueError for a timeout out of range."""
    timeout_ms = options.get("timeout_ms")
    traceparent = options.get("traceparent")
    request_id = options.get("request_id") or uuid4().hex
    return CallContext(
        checked_timeout_ms(default_timeout_ms if timeout_ms is None else timeout_ms),
        request_id,
        {**headers, "x-request-id": request_id, **({"traceparent": traceparent} if traceparent else {})},
    )


def lower_case(headers: Mapping[str, str]) -> dict[str, str]:
    """The same headers under lower-case names, which HTTP allows and gRPC metadata demands."""
    return {name.lower(): value for name, value in headers.items()}
