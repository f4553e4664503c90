"""`Deadline`: the moment an answer stops being useful. A value made once at the edge and passed on as an argument.

The tightest of four sources wins: the gRPC deadline, the `X-Request-Timeout-Ms` header, OIP's `timeout` parameter
(microseconds) and the pipeline's budget. Over a process hop it travels as the time that remains.
"""

from __future__ import annotations

from math import isfinite

from msgspec import Struct

from serve.errors import InvalidInput

NS_PER_MS = 1_000_000
MAX_TIMEOUT_MS = 3_600_000.0
OTHER_BUDGET_MS = 60_000.0
"""Of what no pipeline answers: metadata, health, records."""
LOAD_BUDGET_MS = 1_800_000.0
"""Of a model's load, which may have to compile; and of an unload, which lets answers leave first."""


class Deadline(Struct, frozen=True, gc=False):
    """A point on the monotonic clock, in nanoseconds. A struct: one is made per request, in a fifth of the time."""

    at_ns: int

    def remaining_ns(self, now_ns: int) -> int:
        """Time left; negative when it has passed."""
        return self.at_ns - now_ns

    def remaining_ms(self, now_ns: int) -> float:
        """Time left in milliseconds; what crosses a process hop."""
        return (self.at_ns - now_ns) / NS_PER_MS

    def is_past(self, now_ns: int) -> bool:
        """Whether the answer is no longer useful."""
        return now_ns >= self.at_ns


def tightest(
    now_ns: int, budget_ms: float, *, header_ms: float | None = None, grpc_remaining_s: float | None = None
) -> Deadline:
    """The deadline of a request that arrived at `now_ns`, from what is known before its body is looked into."""
    limit_ns = int(budget_ms * NS_PER_MS)
    if header_ms is not None:
        limit_ns = min(limit_ns, int(header_ms * NS_PER_MS))
    if grpc_remaining_s is not None:
        limit_ns = min(limit_ns, int(grpc_remaining_s * 1e9))
    return Deadline(now_ns + limit_ns)


def limited(deadline: Deadline, arrived_ns: int, oip_timeout_us: int | None) -> Deadline:
    """The deadline of a request whose body carries a limit of its own, where that is tighter."""
    if not oip_timeout_us:
        return deadline
    return Deadline(min(deadline.at_ns, arrived_ns + oip_timeout_us * 1000))


def parse_timeout_ms(text: str) -> float:
    """Reads `X-Request-Timeout-Ms`; raises InvalidInput unless it is a number over 0 and at most one hour."""
    try:
        timeout_ms = float("nan" if "_" in text else text)
    except ValueError:
        timeout_ms = float("nan")
    if not isfinite(timeout_ms) or not 0 < timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidInput(
            f"header X-Request-Timeout-Ms is {text[:40]!r}; allowed: milliseconds over 0, at most {MAX_TIMEOUT_MS:.0f}",
            field="X-Request-Timeout-Ms",
        )
    return timeout_ms
