"""What the embedded store forgets by itself, a little every second: old decisions, and windows of keys gone quiet.

Takes an open database; deletes in short transactions, so that no commit waits long. Called by the store's housekeeper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kernels.windows import LATENESS_S, RETAINED_S
from serve.features import records
from serve.features.database import Database

if TYPE_CHECKING:
    import lmdb

Audit = Callable[[str, Mapping[str, object]], None]
"""Told an event's name and its details."""

IDLE_S = RETAINED_S[-1] + LATENESS_S
"""An event this much older than another of its key is in none of its windows, however late that one is."""
_ENTRIES_PER_TRANSACTION, _TRANSACTIONS_PER_ROUND = 128, 8
_KEYS_PER_ROUND = 256
_TELL_EVERY_S = 3600.0
"""One line an hour: in a full store, something is forgotten every second."""


class Retention:
    """Remembers how far the sweep over the windows has come. `saw` may be called beside `run`.

    Decisions age by the wall clock, from when they were recorded. Windows age by the events, so that a replay of old
    ones keeps its own: a key is idle when it is `IDLE_S` behind the newest event this process recorded, or the clock.
    """

    def __init__(self, max_age_s: float, wall_clock_s: Callable[[], float], on_audit: Audit) -> None:
        self._max_age_s = max_age_s
        self._on_audit = on_audit
        self._wall_clock_s = wall_clock_s
        self._newest_event_s = 0
        self._forgotten: Counter[str] = Counter()
        self._told_s = 0.0
        self._next_key = records.WINDOWS_BEGIN

    def saw(self, event_s: int) -> None:
        """An event of this time was recorded."""
        self._newest_event_s = max(self._newest_event_s, event_s)

    def trimmed(self, num_decisions: int) -> None:
        """So many decisions were forgotten because the store is full; told with the next line."""
        self._forgotten["trimmed_decisions"] += num_decisions

    def run(self, database: Database) -> None:
        """One round: at most 1,024 decisions and the windows of at most 256 keys."""
        now_s = self._wall_clock_s()
        num_expired = _expire(database, int((now_s - self._max_age_s) * 1e6))
        num_idle = self._sweep(database, min(int(now_s), self._newest_event_s) - IDLE_S)
        self._forgotten["expired_decisions"] += num_expired
        self._forgotten["idle_windows"] += num_idle
        if now_s >= self._told_s + _TELL_EVERY_S and any(self._forgotten.values()):
            forgotten, self._forgotten = self._forgotten, Counter()
            self._told_s = now_s
            self._on_audit("forgotten", {what: n for what, n in forgotten.items() if n})

    def _sweep(self, database: Database, before_s: int) -> int:
        with database.env.begin(buffers=True) as txn:
            idle, self._next_key = _idle_keys(txn, self._next_key, before_s)
        if not idle:
            return 0
        with database.env.begin(write=True) as txn:
            for key in idle:
                state = txn.get(key)
                if state is not None and _newest_event_s(state) < before_s:
                    txn.delete(key)
        return len(idle)


def _expire(database: Database, before: int) -> int:
    with database.env.begin() as txn:
        oldest = next(records.log_entries(txn), None)
    if oldest is None or oldest[0] >= before:
        return 0
    num_expired = 0
    for _ in range(_TRANSACTIONS_PER_ROUND):
        with database.env.begin(write=True) as txn:
            num_trimmed = records.trim(txn, _ENTRIES_PER_TRANSACTION, before)
        num_expired += num_trimmed
        if num_trimmed < _ENTRIES_PER_TRANSACTION:
            break
    return num_expired


def _idle_keys(txn: lmdb.Transaction[Any], begin: bytes, before_s: int) -> tuple[list[bytes], bytes]:
    """The idle ones of the next keys of windows from `begin` on, and where to go on."""
    idle: list[bytes] = []
    with txn.cursor() as cursor:
        if not cursor.set_range(begin):
            return idle, records.WINDOWS_BEGIN
        for visited, (view, state) in enumerate(cursor.iternext()):
            key = bytes(view)
            if key >= records.WINDOWS_END:
                break
            if visited == _KEYS_PER_ROUND:
                return idle, key
            if _newest_event_s(state) < before_s:
                idle.append(key)
    return idle, records.WINDOWS_BEGIN


def _newest_event_s(state: bytes | memoryview) -> int:
    """The second word of a window state (`kernels.windows`)."""
    return int.from_bytes(state[8:16], "little", signed=True)
