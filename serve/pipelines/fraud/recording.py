"""What the fraud pipeline asks of its feature store, and what it does when the store does not answer.

Called by `serve.pipelines.fraud.flow`, one thread at a time. A breaker for reading and one for writing leave a store
alone that fails; the answers say what they lack.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from serve.features.breaker import Breaker
from serve.features.store import Events, FeatureStore, Fetched, Stored, StoreFailed
from serve.pipelines.fraud.contract import Decision


class StoreSink(Protocol):
    """Where the store's events and states are counted."""

    def count_store(self, event: str, n: int = 1) -> None: ...

    def set_store_state(self, name: str, value: float) -> None: ...


class Recorded(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is kept of a decision. `log_odds` are the ensemble's own, before labels corrected them; `row`: what was
    scored, float32 in bytes, where reasons are still to be found.
    """

    decision: Decision
    log_odds: float
    row: bytes | None = None


encode_recorded = msgspec.msgpack.Encoder().encode
decode_recorded = msgspec.msgpack.Decoder(Recorded).decode


class Recording:
    """Reads what is known before a batch and records what was decided."""

    def __init__(self, store: FeatureStore, sink: StoreSink, *, commit_limit_ns: int) -> None:
        self._store = store
        self._sink = sink
        self._commit_limit_ns = commit_limit_ns
        self._reading, self._writing = Breaker(), Breaker()

    def fetch(self, events: Events) -> Fetched | None:
        """Windows and earlier decisions; None while the store cannot be read."""
        now_ns = time.monotonic_ns()
        if not self._reading.allows(now_ns):
            return None
        try:
            fetched = self._store.fetch(events)
        except StoreFailed as failure:
            self._reading.failed(time.monotonic_ns())  # now: failing may have taken longer than the breaker is open
            self._count_failure(f"fetch_{failure.event}")
            return None
        self._recovered(self._reading)
        return fetched

    def record(self, events: Events, fetched: Fetched, decided: Sequence[Recorded]) -> list[Stored] | None:
        """Records what is new; gives what had been decided before, by anybody. None: nothing could be recorded."""
        to_record: list[bytes | None] = [encode_recorded(one) for one in decided]
        for stored in fetched.stored:
            to_record[stored.row] = None
        if len(fetched.stored) == len(decided):
            return list(fetched.stored)
        try:
            return [*fetched.stored, *self._commit(events, fetched, to_record)]
        except StoreFailed as failure:
            self._count_failure(f"commit_{failure.event}")
            return None

    def _commit(self, events: Events, fetched: Fetched, to_record: list[bytes | None]) -> list[Stored]:
        now_ns = time.monotonic_ns()
        if not self._writing.allows(now_ns):
            raise StoreFailed("breaker_open")
        try:
            meanwhile = self._store.commit(events, to_record, fetched, now_ns + self._commit_limit_ns)
        except StoreFailed:
            self._writing.failed(time.monotonic_ns())
            raise
        self._recovered(self._writing)
        return meanwhile

    def _recovered(self, breaker: Breaker) -> None:
        was_open = breaker.is_open
        breaker.succeeded()
        if was_open:
            self._show_breakers()

    def _count_failure(self, event: str) -> None:
        self._sink.count_store(event)
        self._show_breakers()

    def _show_breakers(self) -> None:
        self._sink.set_store_state("breaker_open", float(self._reading.is_open or self._writing.is_open))
