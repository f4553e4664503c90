"""The native gRPC transport: sockets, TLS, HTTP/2, framing, deadlines and limits in C++ threads; see README.md.

`why_unavailable` says whether it can be used here; `Transport` and `Call` are the extension module's classes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.transport._transport import Call as Call
    from kernels.transport._transport import Event as Event
    from kernels.transport._transport import Request as Request
    from kernels.transport._transport import Transport as Transport


class EventKind(IntEnum):
    """What has happened to a call; as in call.hpp. A unary request is no event: `take` gives it by itself."""

    OPENED = 1
    MESSAGE = 2
    HALF_CLOSED = 3
    ENDED = 4
    WRITABLE = 5


def why_unavailable() -> str | None:
    """Why the extension module cannot be used, in words for a person; None where it can."""
    try:
        from kernels.transport import _transport  # noqa: F401
    except ImportError as error:
        return f"its extension module is not there ({error}); `python -m kernels.transport.build` makes it"
    return None


def __getattr__(name: str) -> Any:
    if name not in ("Call", "Transport"):
        raise AttributeError(name)
    from kernels.transport import _transport

    return getattr(_transport, name)
