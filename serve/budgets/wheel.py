"""A hashed timing wheel (Varghese and Lauck, SOSP 1987, scheme 6): answers on time while a batch still runs.

Enters: entries with a deadline. Leaves: those whose tick has passed. Insertion and expiry are O(1); entries that were
answered in the meantime stay in their slot until its turn and are recognised by the caller. Not thread-safe: it belongs
to one event loop.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Generic, TypeVar

T = TypeVar("T")


class TimingWheel(Generic[T]):
    """Entries in ticks of `tick_ns`. Deadlines further away than one turn wait in their slot for their round."""

    def __init__(self, now_ns: int, *, tick_ns: int = 1_000_000, num_slots: int = 1024) -> None:
        self._tick_ns = tick_ns
        self._slots: list[list[tuple[int, T]]] = [[] for _ in range(num_slots)]
        self._next_tick = now_ns // tick_ns
        self.num_entries = 0

    def add(self, at_ns: int, entry: T) -> None:
        """Files `entry` to expire with the first tick after `at_ns`; one already past, with the next `advance`."""
        tick = max(-(-at_ns // self._tick_ns), self._next_tick)
        self._slots[tick % len(self._slots)].append((tick, entry))
        self.num_entries += 1

    def advance(self, now_ns: int) -> list[T]:
        """Everything whose deadline has passed by `now_ns`, earliest tick first."""
        last_tick = now_ns // self._tick_ns
        if not self.num_entries:
            self._next_tick = last_tick + 1
            return []
        expired: list[tuple[int, T]] = []
        first_tick = max(self._next_tick, last_tick - len(self._slots) + 1)
        for tick in range(first_tick, last_tick + 1):
            slot = self._slots[tick % len(self._slots)]
            if slot:
                self._expire(slot, last_tick, expired)
        self._next_tick = last_tick + 1
        self.num_entries -= len(expired)
        expired.sort(key=itemgetter(0))
        return [entry for _, entry in expired]

    @staticmethod
    def _expire(slot: list[tuple[int, T]], last_tick: int, expired: list[tuple[int, T]]) -> None:
        later = []
        for filed in slot:
            if filed[0] <= last_tick:
                expired.append(filed)
            else:
                later.append(filed)
        slot[:] = later
