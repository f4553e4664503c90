"""What a request carries from the edge through every stage: who asks, under which ids, until when.

Made by a listener, read by stages, sinks (log, metrics, headers) and clients of other processes. Never a global.
"""

from __future__ import annotations

from itertools import count
from os import urandom
from typing import NewType

from msgspec import Struct

from serve.budgets.deadline import Deadline

TenantId = NewType("TenantId", str)
Principal = NewType("Principal", str)

EVERYONE = Principal("anonymous")
DEFAULT_TENANT = TenantId("default")


class RequestContext(Struct, eq=False):
    """Not frozen for one reason: `cancelled` is set when the client leaves, and stages look at it between them."""

    request_id: str
    deadline: Deadline
    arrived_ns: int
    """Monotonic, at the first byte of the request that the server saw complete."""
    traceparent: str | None = None
    tenant: TenantId = DEFAULT_TENANT
    principal: Principal = EVERYONE
    priority: int = 0
    cancelled: bool = False


class RequestIds:
    """Makes request ids: a random prefix per process and a counter, so that one costs no system call."""

    def __init__(self, prefix: bytes | None = None) -> None:
        self._prefix = (prefix or urandom(8)).hex()
        self._next = count(1).__next__

    def make(self) -> str:
        """Unique over processes (64 random bits) and within one (a 64-bit counter): 32 hexadecimal digits."""
        return f"{self._prefix}{self._next():016x}"


MAX_REQUEST_ID_CHARS = 128
_TRACEPARENT_CHARS = 55


def is_request_id(text: str) -> bool:
    """Whether a client's id may be echoed: 1 to 128 visible ASCII characters, so it cannot break a header or a log."""
    return 0 < len(text) <= MAX_REQUEST_ID_CHARS and text.isascii() and text.isprintable() and " " not in text


def is_traceparent(text: str) -> bool:
    """W3C Trace Context, section 3.2: `version-traceid-parentid-flags`, lower-case hexadecimal, ids not all zero."""
    if len(text) != _TRACEPARENT_CHARS or text[2] != "-" or text[35] != "-" or text[52] != "-":
        return False
    digits = text[:2] + text[3:35] + text[36:52] + text[53:]
    return (
        all(c in "0123456789abcdef" for c in digits)
        and text[:2] != "ff"
        and text[3:35].strip("0") != ""
        and text[36:52].strip("0") != ""
    )
