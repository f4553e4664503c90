"""The embedded store in one process: decisions, windows, and several threads at once."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable

import numpy as np
import pytest

from serve.features.store import Events, StoreFailed
from tests.unit.features.store_cases import (
    NEVER_NS,
    NOW_S,
    assert_same_windows,
    assert_windows_are_the_logs,
    commit,
    decision_of,
    event_of,
    events,
    events_of,
    joined,
    logged,
    offline,
    open_store,
    part_of,
    score,
    totals,
    window_states,
)
from tests.unit.features.transaction_cases import batches


def test_new_transaction_is_unknown_then_counted_and_its_decision_kept(store):
    first = events_of(("a", "c", "t", NOW_S, 50_000))
    assert not store.fetch(first).stored
    assert not store.fetch(first).customer.totals.any()
    assert score(store, first) == []
    second = store.fetch(events_of(("b", "c", "t", NOW_S + 60, 1)))
    assert second.customer.totals.tolist() == [[1] * 4 + [50_000] * 4 + [0] * 6]
    assert second.terminal.totals.tolist() == second.customer.totals.tolist()
    assert [one.decision for one in store.fetch(first).stored] == [decision_of("a")]


def test_customer_and_terminal_of_the_same_name_are_two_keys(store):
    score(store, events_of(("a", "x", "y", NOW_S, 1)))
    seen = store.fetch(events_of(("b", "y", "x", NOW_S, 1)))
    assert not seen.customer.totals.any()
    assert not seen.terminal.totals.any()


def test_online_windows_equal_the_backfill_whatever_the_batches(store):
    rng = np.random.default_rng(5)
    everything = events(3_000, seed=5)
    seen = []
    for rows in batches(3_000, rng):
        batch = part_of(everything, rows)
        fetched = store.fetch(batch)
        seen.append(fetched)
        commit(store, batch, fetched)
    customer, terminal = offline(everything)
    assert_same_windows(joined([one.customer for one in seen]), customer)
    assert_same_windows(joined([one.terminal for one in seen]), terminal)
    assert_windows_are_the_logs(store)


def test_retry_gets_the_first_decision_and_is_counted_once_also_beside_new_rows(store):
    score(store, events_of(("a", "c", "t", NOW_S, 10)))
    batch = events_of(("new 1", "c", "t", NOW_S, 1), ("a", "c", "t", NOW_S, 10), ("new 2", "c", "t", NOW_S, 1))
    fetched = store.fetch(batch)
    assert [(one.row, one.decision) for one in fetched.stored] == [(1, decision_of("a"))]
    assert fetched.customer.totals[[0, 2], 0].tolist() == [1, 2]
    assert commit(store, batch, fetched) == []
    assert totals(store, events_of(("z", "c", "t", NOW_S, 0))) == [3]
    assert_windows_are_the_logs(store)


def test_decision_given_for_a_row_that_was_decided_before_is_ignored(store):
    first = events_of(("a", "c", "t", NOW_S, 10))
    score(store, first)
    assert store.commit(first, [b"another"], store.fetch(first), NEVER_NS) == []
    assert store.fetch(first).stored[0].decision == decision_of("a")
    assert_windows_are_the_logs(store)


def test_row_without_a_decision_is_neither_recorded_nor_counted(store):
    batch = events_of(("a", "c", "t", NOW_S, 10), ("b", "c", "t", NOW_S, 20))
    assert store.commit(batch, [None, b"decision"], store.fetch(batch), NEVER_NS) == []
    assert logged(store).transaction_ids == ("b",)
    assert_windows_are_the_logs(store)


def test_batch_committed_between_reading_and_recording_comes_first(store):
    ours = events_of(("a", "c", "t", NOW_S, 1), ("b", "c", "t", NOW_S, 2))
    fetched = store.fetch(ours)
    score(store, events_of(("b", "c", "t", NOW_S, 2), ("x", "c", "t", NOW_S, 4)), process="theirs")
    meanwhile = commit(store, ours, fetched, process="ours")
    assert [(one.row, one.decision) for one in meanwhile] == [(1, decision_of("b", "theirs"))]
    assert totals(store, events_of(("z", "c", "t", NOW_S, 0))) == [3]
    assert_windows_are_the_logs(store)


def test_committing_the_same_batch_twice_records_it_once(store):
    batch = events(50, seed=1)
    fetched = store.fetch(batch)
    assert commit(store, batch, fetched, process="first") == []
    again = commit(store, batch, fetched, process="second")
    assert [one.decision for one in again] == [decision_of(name, "first") for name in batch.transaction_ids]
    assert_windows_are_the_logs(store)


@pytest.mark.parametrize(
    "name",
    ["\U0001f4b3" * 96, "é" * 96, "a\0b", "\0", "", "c", "a" * 96, "\uffff", "x" * 95 + "\U0010ffff"],
    ids=ascii,
)
def test_any_id_is_kept_apart_from_its_neighbours(store, name):
    batch = events_of((name, name, name, NOW_S, 1), (name + "\0", name + "\0", name + "\0", NOW_S, 2))
    score(store, batch)
    assert [one.row for one in store.fetch(batch).stored] == [0, 1]
    assert logged(store).customer_ids == (name, name + "\0")
    assert totals(store, events_of(("z", name, name, NOW_S, 0))) == [1]


def test_many_rows_of_one_key_in_one_batch_see_each_other_in_order(store):
    batch = events_of(*((f"{n}", "c", "t", NOW_S + n, n) for n in range(2_000)))
    fetched = store.fetch(batch)
    assert fetched.customer.totals[:, 0].tolist() == list(range(2_000))
    commit(store, batch, fetched)
    assert_windows_are_the_logs(store)


def test_long_decisions_are_kept(store):
    batch = events(3, seed=1)
    decisions = [os.urandom(size) for size in (2_000, 5_000, 100_000)]
    store.commit(batch, decisions, store.fetch(batch), NEVER_NS)
    assert [one.decision for one in store.fetch(batch).stored] == decisions


def test_log_is_read_from_after_a_number_on(store):
    for seed in range(3):
        score(store, events(10, seed=seed))
    whole = store.read_log()
    assert [number for number, _ in whole] == sorted(number for number, _ in whole)
    assert store.read_log(after=whole[9][0]) == whole[10:]
    assert store.read_log(after=whole[-1][0]) == []


def test_numbers_rise_when_the_clock_goes_back(path):
    seconds = iter([1_000.0, 500.0, 2_000.0])
    store = open_store(path, wall_clock_s=lambda: next(seconds), housekeeping_s=3600)
    for seed in range(3):
        score(store, events(2, seed=seed))
    assert [number for number, _ in store.read_log()] == [
        1_000_000_000, 1_000_000_001, 1_000_000_002, 1_000_000_003, 2_000_000_000, 2_000_000_001,
    ]  # fmt: skip
    store.close()


def test_failure_of_a_callers_making_changes_nothing(store):
    batch = events(10, seed=1)
    bad = Events([*batch.transaction_ids[:9], batch.transaction_ids[0]], *(
        getattr(batch, name) for name in ("customer_ids", "terminal_ids", "event_s", "amount_e4", "place")
    ))  # fmt: skip
    fetched = store.fetch(bad)
    assert event_of(lambda: commit(store, bad, fetched)) == "error"
    assert store.read_log() == []
    assert window_states(store) == {}
    score(store, batch)
    assert_windows_are_the_logs(store)


def test_reading_recording_checking_and_replacing_at_once_never_fail_otherwise_than_said(path):
    """What Ray's thread, the runner and the writer do; here as fast as they can."""
    store = open_store(path, housekeeping_s=0.001)
    is_over = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            if not isinstance(error, StoreFailed) or error.event not in ("replaced", "unavailable"):
                errors.append(error)

    def again_and_again(work: Callable[[], object]) -> None:
        while not is_over.is_set():
            guarded(work)

    def replace_it() -> None:
        shutil.rmtree(path, ignore_errors=True)
        is_over.wait(0.005)

    works = (store.check, store.bytes_used, lambda: store.fetch(events(64, seed=3)), replace_it)
    threads = [threading.Thread(target=again_and_again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for seed in range(300):
        guarded(lambda seed=seed: score(store, events(64, seed=seed)))
    is_over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    store.check()
    store.check()
    score(store, events(64, seed=999))
    assert_windows_are_the_logs(store)
    store.close()
