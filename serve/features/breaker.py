"""A circuit breaker (Nygard, Release It!, chapter 5): after failures in a row the dependency is left alone for a while.

Pure; the clock is passed in. Belongs to one thread.
"""

from __future__ import annotations


class Breaker:
    """Closed: calls pass. Open: none for `open_ns`; then a trial passes: success closes, failure opens again."""

    def __init__(self, *, failures_to_open: int = 3, open_ns: int = 500_000_000) -> None:
        self._failures_to_open = failures_to_open
        self._open_ns = open_ns
        self._num_failures = 0
        self._open_until_ns = 0

    def allows(self, now_ns: int) -> bool:
        """Whether a call may be tried now."""
        return now_ns >= self._open_until_ns

    @property
    def is_open(self) -> bool:
        """Whether the last word was to leave the dependency alone."""
        return self._num_failures >= self._failures_to_open

    def succeeded(self) -> None:
        """The call worked."""
        self._num_failures = 0

    def failed(self, now_ns: int) -> None:
        """The call failed."""
        self._num_failures += 1
        if self.is_open:
            self._open_until_ns = now_ns + self._open_ns
