"""Which lines may be written: more candidates than the rate allows enter, those to keep leave.

A token bucket (one second's worth) of which a quarter is kept back for errors, so that a flood of good requests does
not crowd out the first bad one. Pure, the clock passed in; called by the access log's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_RESERVED_SHARE: Final = 0.25
_NS_PER_S: Final = 1_000_000_000


class LineBudget:
    """Allows `lines_per_s` on average and as many at once."""

    def __init__(self, lines_per_s: int, now_ns: int) -> None:
        self._lines_per_s = lines_per_s
        self._tokens = float(lines_per_s)
        self._refilled_ns = now_ns

    def set_rate(self, lines_per_s: int) -> None:
        """Changes the rate from now on."""
        self._lines_per_s = lines_per_s

    def choose(self, candidates: Sequence[T], is_error: Callable[[T], bool], now_ns: int) -> list[T]:
        """Those to keep, in their order: errors first, then others down to what is reserved for errors."""
        self._refill(now_ns)
        if len(candidates) <= self._tokens - self._reserved:
            kept = list(candidates)
        else:
            kept = self._choose_some([(one, is_error(one)) for one in candidates])
        self._tokens -= len(kept)
        return kept

    @property
    def _reserved(self) -> float:
        return self._lines_per_s * _RESERVED_SHARE

    def _choose_some(self, marked: list[tuple[T, bool]]) -> list[T]:
        num_errors = min(sum(error for _, error in marked), int(self._tokens))
        num_others = max(0, int(self._tokens - num_errors - self._reserved))
        left = {True: num_errors, False: num_others}
        kept = []
        for one, error in marked:
            if left[error]:
                left[error] -= 1
                kept.append(one)
        return kept

    def _refill(self, now_ns: int) -> None:
        gained = (now_ns - self._refilled_ns) * self._lines_per_s / _NS_PER_S
        self._tokens = min(float(self._lines_per_s), self._tokens + gained)
        self._refilled_ns = now_ns
