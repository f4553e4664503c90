"""The native gRPC transport: sockets, TLS, HTTP/2, framing, deadlines and limits in C++ threads; see README.md.

`why_unavailable` says whether it can be used here; `Transport` is the extension module's class.
"""

from __future__ import annotations

from typing import Any


def why_unavailable() -> str | None:
    """Why the extension module cannot be used, in words for a person; None where it can."""
    try:
        from kernels.transport import _transport  # noqa: F401
    except ImportError as error:
        return f"its extension module is not there ({error}); `python -m kernels.transport.build` makes it"
    return None


def __getattr__(name: str) -> Any:
    if name != "Transport":
        raise AttributeError(name)
    from kernels.transport._transport import Transport

    return Transport
