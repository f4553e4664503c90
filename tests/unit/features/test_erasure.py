"""Erasing a customer from the embedded store: unreadable at once, out of the log soon, and new if it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.features import erasure
from serve.features.embedded import EmbeddedStore
from serve.features.store import UNLABELLED, Labelled
from tests.unit.features.erasure_cases import (
    VICTIM,
    erasures,
    housekeep_until,
    housekeep_until_compacted,
    open_quiet,
)
from tests.unit.features.store_cases import (
    NOW_S,
    assert_windows_are_the_logs,
    commit,
    decision_of,
    events,
    events_of,
    logged,
    on_disk,
    score,
    totals,
    window_states,
)

DAY_S = 86_400
AGAIN = events_of(("victims-0", "victim", "t", NOW_S, 1_000))


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    one = open_quiet(path)
    yield one
    one.close()


def test_erased_customer_cannot_be_found_labelled_or_answered_from_the_moment_on(store):
    score(store, VICTIM)
    score(store, events(50, seed=1))
    store.erase("victim")
    assert store.find("victims-3") is None
    assert store.label({"victims-3": True, "1-7": True}) == [Labelled(None), Labelled(store_before_label(store, "1-7"))]
    fetched = store.fetch(VICTIM)
    assert fetched.stored == []
    assert fetched.customer.totals[0].tolist() == [0] * 14
    assert b"cvictim" not in window_states(store)
    assert len(store.fetch(events(50, seed=1)).stored) == 50


def store_before_label(store, name):
    entry = store.find(name)
    return type(entry)(*(*(getattr(entry, field) for field in entry.__struct_fields__[:7]), UNLABELLED, entry.is_late))


def test_counts_and_risk_of_the_terminals_stay(store):
    score(store, VICTIM)
    store.label({"victims-1": True, "victims-2": True})
    probe = events_of(("probe", "other", "t", NOW_S + 8 * DAY_S, 1))
    before = store.fetch(probe).terminal.totals.tolist()
    assert before[0][-1] == 2
    store.erase("victim")
    assert store.fetch(probe).terminal.totals.tolist() == before
    housekeep_until(store, lambda: not erasures(store))
    assert store.fetch(probe).terminal.totals.tolist() == before


@pytest.mark.parametrize("is_swept", [False, True])
def test_erased_transaction_is_decided_and_recorded_anew_whether_swept_or_not(store, is_swept):
    score(store, VICTIM)
    store.erase("victim")
    if is_swept:
        housekeep_until(store, lambda: not erasures(store))
    assert score(store, AGAIN, process="anew") == []
    assert store.find("victims-0").decision == decision_of("victims-0", "anew")
    assert store.find("victims-1") is None
    assert [one.decision for one in store.fetch(AGAIN).stored] == [decision_of("victims-0", "anew")]
    housekeep_until(store, lambda: not erasures(store))
    assert store.find("victims-0").decision == decision_of("victims-0", "anew")
    assert totals(store, events_of(("z", "victim", "t", NOW_S + 60, 1))) == [1]


def test_customer_who_comes_back_starts_anew_and_is_kept(store, path):
    score(store, VICTIM)
    store.erase("victim")
    back = events_of(*((f"back-{n}", "victim", "t", NOW_S + 100 + n, 7) for n in range(3)))
    assert totals(store, back) == [0, 1, 2]
    score(store, back)
    housekeep_until_compacted(store, path)
    assert logged(store).transaction_ids == ("back-0", "back-1", "back-2")
    assert totals(store, events_of(("z", "victim", "t", NOW_S + 200, 1))) == [3]
    store.erase("victim")
    assert store.find("back-0") is None


@pytest.mark.parametrize("step_s", [0.0, -1_000.0])
def test_customer_who_comes_back_is_kept_though_the_clock_stands_or_goes_back(path, step_s):
    clock = [1_000_000.0]
    store = open_quiet(path, wall_clock_s=lambda: clock[0])
    score(store, VICTIM)
    store.erase("victim")
    clock[0] += step_s
    score(store, AGAIN, process="anew")
    score(store, events_of(("back", "victim", "t", NOW_S, 1)))
    assert store.find("back") is not None
    assert store.find("victims-0").decision == decision_of("victims-0", "anew")
    housekeep_until(store, lambda: not erasures(store))
    assert set(logged(store).transaction_ids) == {"victims-0", "back"}
    store.close()


def test_batch_read_before_the_erasure_is_recorded_as_of_after_it(store):
    """Its customer is known again, by this one transaction, in the windows as in the log."""
    score(store, VICTIM)
    batch = events_of(("flying", "victim", "t", NOW_S + 60, 5))
    fetched = store.fetch(batch)
    store.erase("victim")
    assert commit(store, batch, fetched) == []
    assert store.find("flying") is not None
    assert totals(store, events_of(("z", "victim", "t", NOW_S + 90, 1))) == [1]


def test_unknown_customer_and_one_erased_twice_are_erased_all_the_same(store, path):
    score(store, events(50, seed=1))
    for name in ("nobody", "nobody", "", "\U0001f4b3" * 96):
        store.erase(name)
    housekeep_until_compacted(store, path)
    assert len(store.read_log()) == 50
    assert_windows_are_the_logs(store)


@pytest.mark.parametrize(
    "name", ["\U0001f4b3" * 96, "a\0b", "\0", "", "c", "\uffff", "{", "x" * 95 + "\U0010ffff"], ids=ascii
)
def test_erasure_ends_at_the_ids_neighbours(store, name):
    score(store, events_of(("a", name, "t", NOW_S, 1), ("b", name + "\0", "t", NOW_S, 2), ("c", "z", "t", NOW_S, 3)))
    store.erase(name)
    housekeep_until(store, lambda: not erasures(store))
    assert logged(store).transaction_ids == ("b", "c")
    assert set(window_states(store)) == {f"c{name}\0".encode(), b"cz", b"tt"}


def test_sweep_goes_through_the_log_a_bounded_number_of_entries_a_round(store, monkeypatch):
    monkeypatch.setattr(erasure, "_ENTRIES_PER_ROUND", 100)
    for seed in range(10):
        score(store, events(90, seed=seed))
        score(store, events_of(*((f"victims {seed} {n}", "victim", "t", NOW_S, 1) for n in range(10))))
    store.erase("victim")
    left = []
    while erasures(store):
        store._housekeep()
        left.append(len(store.read_log()))
    assert left == list(range(990, 890, -10))


def test_customer_erased_while_another_is_searched_for_is_searched_for_next(store, path, monkeypatch):
    monkeypatch.setattr(erasure, "_ENTRIES_PER_ROUND", 10)
    score(store, VICTIM)
    score(store, events_of(*((f"seconds-{n}", "second", "t", NOW_S, 1) for n in range(20))))
    store.erase("second")
    for _ in range(2):
        store._housekeep()
    store.erase("victim")
    housekeep_until_compacted(store, path)
    assert store.read_log() == []
    assert b"seconds-" not in on_disk(path)
    assert b"victim" not in on_disk(path)


def test_audit_is_told_of_the_search_and_of_the_compaction(path):
    told: list[tuple[str, dict[str, object]]] = []
    clock = [float(NOW_S)]
    store = open_quiet(
        path,
        max_age_s=100,
        wall_clock_s=lambda: clock[0],
        on_audit=lambda event, details: told.append((event, dict(details))),
    )
    score(store, VICTIM)
    score(store, events_of(("other", "c", "u", NOW_S, 1)))
    for name in ("victim", "nobody"):
        store.erase(name)
    housekeep_until_compacted(store, path)
    assert told == [("erased_from_log", {"customers": 2}), ("compacted", {})]
    told.clear()
    clock[0] += 101
    store._retention.saw(NOW_S + 100 * DAY_S)
    store._housekeep()
    assert told == [("forgotten", {"expired_decisions": 1})]
    told.clear()
    clock[0] += 100 * DAY_S
    store._housekeep()
    store._housekeep()
    assert told == [("forgotten", {"idle_windows": 3})]
    store.close()
