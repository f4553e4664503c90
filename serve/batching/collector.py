"""The collector: where arrivals wait for the batch that is running. A bounded, locked queue without event-loop types.

Enters: arrivals, pushed by listeners' threads. Leaves: all of them at once, to the runner that takes. No timer:
whatever arrived while the last batch ran is the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from serve.batching.arrival import Arrival
from serve.errors import NotReady, Overloaded

_MIN_RETRY_MS = 5


class Collector:
    """Holds at most `max_items` rows, counted from `push` until `done`: waiting, forming and running ones.

    `share` is the part of the time left that may be spent waiting, as predicted, before a request is refused early.
    """

    def __init__(self, name: str, *, max_items: int, share: float = 0.6) -> None:
        self.name = name
        self.max_items = max_items
        self.share = share
        self.num_items = 0
        self._ns_per_item = 0.0
        self._waiting: list[Arrival] = []
        self._is_closed = False
        self._wake = threading.Condition(threading.Lock())
        self._num_takers_idle = 0

    def push(
        self, arrivals: Sequence[Arrival], now_ns: int, delay_ns: int = 0
    ) -> list[tuple[Arrival, Overloaded | NotReady]]:
        """Takes in what fits and returns the rest, each with its named reason."""
        refused: list[tuple[Arrival, Overloaded | NotReady]] = []
        with self._wake:
            for arrival in arrivals:
                reason = self._refusal(arrival, now_ns, delay_ns)
                if reason is None:
                    self._waiting.append(arrival)
                    self.num_items += arrival.items
                else:
                    refused.append((arrival, reason))
            if self._num_takers_idle and self._waiting:
                self._wake.notify()
        return refused

    def _refusal(self, arrival: Arrival, now_ns: int, delay_ns: int) -> Overloaded | NotReady | None:
        if self._is_closed:
            return NotReady(f"pipeline {self.name} is closing; retry on a new connection")
        ahead = self.num_items
        if ahead and ahead + arrival.items > self.max_items:
            return Overloaded(
                f"{ahead} items wait for pipeline {self.name}; allowed {self.max_items}; retry later",
                reason="queue_full",
                retry_after_ms=self._retry_after_ms(ahead),
            )
        wait_ns = ahead * self._ns_per_item
        left_ns = arrival.context.deadline.at_ns - now_ns
        if left_ns > 0 and wait_ns > self.share * (left_ns - delay_ns):
            return Overloaded(
                f"the predicted wait of {(wait_ns + delay_ns) / 1e6:.1f} ms does not fit the {left_ns / 1e6:.1f} ms left",
                reason="budget",
                retry_after_ms=self._retry_after_ms(ahead),
            )
        return None

    def _retry_after_ms(self, ahead: int) -> int:
        return max(_MIN_RETRY_MS, int(ahead * self._ns_per_item / 1e6))

    def take(self, timeout_s: float | None = None) -> list[Arrival] | None:
        """Everything that waits; blocks until there is something. None when closed and empty; [] after `timeout_s`."""
        with self._wake:
            while not self._waiting:
                if self._is_closed:
                    return None
                self._num_takers_idle += 1
                was_woken = self._wake.wait(timeout_s)
                self._num_takers_idle -= 1
                if not was_woken and not self._waiting:
                    return []
            taken, self._waiting = self._waiting, []
            return taken

    def take_now(self) -> list[Arrival]:
        """Everything that waits, possibly nothing; never blocks."""
        with self._wake:
            taken, self._waiting = self._waiting, []
            return taken

    def done(self, num_items: int, ns_per_item: float | None = None) -> None:
        """Frees the room of `num_items`; `ns_per_item` is what the runner now predicts an item to cost at capacity."""
        with self._wake:
            self.num_items -= num_items
            if ns_per_item is not None:
                self._ns_per_item = ns_per_item

    def close(self) -> None:
        """Refuses further pushes; takers get what is left, then None."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
