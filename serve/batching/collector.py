"""The collector: where arrivals wait for the batch that is running. A bounded, locked queue without event-loop types.

Enters: arrivals, pushed by listeners' threads. Leaves: all of them at once, to the runner that takes. No timer:
whatever arrived while the last batch ran is the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from serve.batching.arrival import Arrival
from serve.errors import NotReady, Overloaded

_MIN_RETRY_MS = 5


class Collector:
    """Holds at most `max_items` rows, counted from `push` until `done`: waiting, forming and running ones.

    A request is refused early unless its answer is predicted within `share` of the time it was given. The rest is for
    what no server sees: the way back, and the client's own queue. Planned to the last millisecond, a standing queue
    would make every answer late by a little, and all of them useless.
    """

    def __init__(self, name: str, *, max_items: int, share: float = 0.7) -> None:
        self.name = name
        self.max_items = max_items
        self.share = share
        self.num_items = 0
        self._ns_per_item = 0.0
        self._batch_items = 0
        self._waiting: list[Arrival] = []
        self._is_closed = False
        self._is_dispatched = False
        self._wake = threading.Condition(threading.Lock())
        self._num_takers_idle = 0

    def push(self, arrivals: Sequence[Arrival], now_ns: int) -> list[tuple[Arrival, Overloaded | NotReady]]:
        """Takes in what fits and returns the rest, each with its named reason. Wakes nobody."""
        refused: list[tuple[Arrival, Overloaded | NotReady]] = []
        too_late: dict[int, Overloaded] = {}  # by time allowed: those given the same time share one refusal
        with self._wake:
            if self._is_closed:
                closing = NotReady(f"pipeline {self.name} is closing; retry on a new connection")
                return [(arrival, closing) for arrival in arrivals]
            for arrival in arrivals:
                context = arrival.context
                allowed_ns = context.deadline.at_ns - context.arrived_ns
                planned_ns = self._planned_ns(now_ns - context.arrived_ns)
                reason: Overloaded | None
                if planned_ns > self.share * allowed_ns and context.deadline.at_ns > now_ns:
                    reason = too_late.get(allowed_ns)
                    if reason is None:
                        reason = too_late[allowed_ns] = self._too_late(planned_ns, allowed_ns)
                else:
                    reason = self._queue_full(arrival.items)
                if reason is None:
                    self._waiting.append(arrival)
                    self.num_items += arrival.items
                else:
                    refused.append((arrival, reason))
        return refused

    def _planned_ns(self, waited_ns: int) -> float:
        """From arrival to answer, as predicted; where nobody is ahead, what it has waited: an idle server tries."""
        ahead = self.num_items
        return waited_ns + (ahead + min(ahead, self._batch_items)) * self._ns_per_item

    def bound(self, allowed_ms: float) -> int:
        """How many more items may wait elsewhere, so that the last one is planned within its share of the time."""
        if not self._ns_per_item:
            return self.max_items
        fitting = self.share * allowed_ms * 1e6 / self._ns_per_item
        ahead = max(fitting / 2, fitting - self._batch_items)
        return max(1, min(self.max_items, int(ahead) - self.num_items))

    def _too_late(self, planned_ns: float, allowed_ns: int) -> Overloaded:
        return Overloaded(
            f"an answer is predicted {planned_ns / 1e6:.1f} ms after arrival, too close to the {allowed_ns / 1e6:.1f} ms "
            "allowed; retry later",
            reason="budget",
            retry_after_ms=self._retry_after_ms(self.num_items),
        )

    def _queue_full(self, items: int) -> Overloaded | None:
        ahead = self.num_items
        if not ahead or ahead + items <= self.max_items:
            return None
        return Overloaded(
            f"{ahead} items wait for pipeline {self.name}; allowed {self.max_items}; retry later",
            reason="queue_full",
            retry_after_ms=self._retry_after_ms(ahead),
        )

    def dispatch(self, again: Callable[[], None] | None = None) -> bool:
        """Lets a taker have what waits, and wakes one, if one is idle. Never asks to be called again."""
        with self._wake:
            self._is_dispatched = True
            if self._num_takers_idle and self._waiting:
                self._wake.notify()
        return False

    @property
    def is_anyone_waiting(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._waiting)

    def put_back(self, arrivals: list[Arrival]) -> None:
        """What was taken and has not run waits again, before everything else, for the next dispatch."""
        with self._wake:
            self._waiting = arrivals + self._waiting
            self._is_dispatched = False

    def _retry_after_ms(self, ahead: int) -> int:
        return max(_MIN_RETRY_MS, int(ahead * self._ns_per_item / 1e6))

    def take(self, timeout_s: float | None = None) -> list[Arrival] | None:
        """Everything that waits; blocks until there is something and it has been dispatched: a listener may be about to
        run it itself. None when closed and empty; [] after `timeout_s`.
        """
        with self._wake:
            while not (self._waiting and (self._is_dispatched or self._is_closed)):
                if self._is_closed:
                    return None
                self._num_takers_idle += 1
                was_woken = self._wake.wait(timeout_s)
                self._num_takers_idle -= 1
                if not was_woken and not self._waiting:
                    return []
            self._is_dispatched = False
            taken, self._waiting = self._waiting, []
            return taken

    def take_now(self) -> list[Arrival]:
        """Everything that waits, possibly nothing; never blocks."""
        with self._wake:
            taken, self._waiting = self._waiting, []
            return taken

    def done(self, num_items: int, ns_per_item: float = 0.0, batch_items: int = 0) -> None:
        """Frees the room of `num_items`; an item now costs `ns_per_item`, and waits for its batch of `batch_items`."""
        with self._wake:
            self.num_items -= num_items
            if batch_items:
                self._ns_per_item, self._batch_items = ns_per_item, batch_items

    def close(self) -> None:
        """Refuses further pushes; takers get what is left, then None."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
