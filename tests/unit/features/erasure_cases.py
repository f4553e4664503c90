"""What the tests of erasure and compaction share: a victim, and a store whose housekeeper waits for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from serve.features import records
from serve.features.embedded import EmbeddedStore
from tests.unit.features.store_cases import NOW_S, events_of, open_store

VICTIM = events_of(
    *((f"victims-{n}", "victim", "t", NOW_S + n, 1_000 + n) for n in range(20)), place=[(52.5, 13.4)] * 20
)

open_quiet = partial(open_store, housekeeping_s=3600.0, compact_after_s=0.0)
"""Its housekeeper waits; the tests do its rounds."""


def housekeep_until(store: EmbeddedStore, is_so: Callable[[], bool]) -> None:
    for _ in range(100):
        if is_so():
            return
        store._housekeep()
    raise AssertionError("a hundred rounds were not enough")


def housekeep_until_compacted(store: EmbeddedStore, path: Path) -> None:
    former = (path / "data.mdb").stat().st_ino
    housekeep_until(store, lambda: (path / "data.mdb").stat().st_ino != former)


def erasures(store: EmbeddedStore) -> set[str]:
    with store._opened().env.begin() as txn:
        return set(records.erasures(txn))
