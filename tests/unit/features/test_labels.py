"""The embedded store's labels: what each met, and the risk of the terminal that follows them."""

from __future__ import annotations

import numpy as np
import pytest

from serve.features.store import FRAUD, GENUINE, UNLABELLED, Labelled
from tests.unit.features.store_cases import (
    NOW_S,
    StoreProcess,
    assert_same_windows,
    assert_windows_are_the_logs,
    commit,
    decision_of,
    event_of,
    events,
    events_of,
    joined,
    offline,
    open_store,
    part_of,
    score,
    window_states,
)
from tests.unit.features.transaction_cases import batches

DAY_S = 86_400


def frauds(store, terminal="t", now_s=NOW_S + 8 * DAY_S):
    """How many frauds of the last 30 days a transaction at the terminal sees."""
    return int(store.fetch(events_of(("probe", "nobody", terminal, now_s, 1))).terminal.totals[0, -1])


def labels_met(labelled: list[Labelled]) -> list[int | None]:
    """What was said before of each transaction; None: it is not known."""
    return [None if one.entry is None else one.entry.label for one in labelled]


def test_label_meets_what_was_said_before_and_the_terminals_risk_follows(store):
    score(store, events_of(("a", "c", "t", NOW_S, 1), ("b", "c", "t", NOW_S, 1)))
    steps = [
        ({"a": True, "unheard of": True}, [UNLABELLED, None], 1),
        ({"a": True}, [FRAUD], 1),
        ({"b": False}, [UNLABELLED], 1),
        ({"b": True, "a": False}, [GENUINE, FRAUD], 1),
        ({"b": False}, [FRAUD], 0),
        ({"b": False, "a": True}, [GENUINE, GENUINE], 1),
    ]
    for labels, met, num_frauds in steps:
        assert labels_met(store.label(labels)) == met
        assert frauds(store) == num_frauds
        assert_windows_are_the_logs(store)
    assert [entry.label for _, entry in store.read_log()] == [FRAUD, GENUINE]


def test_label_gives_the_entry_as_it_was_and_find_gives_it_with_the_label(store):
    score(store, events_of(("a", "c", "t", NOW_S, 5), ("b", "c", "t", NOW_S, 5), place=[(52.5, 13.4), (np.nan, 1.0)]))
    before = store.find("a")
    assert (before.customer_id, before.terminal_id, before.event_s, before.amount_e4) == ("c", "t", NOW_S, 5)
    assert (before.decision, before.place, before.label) == (decision_of("a"), (52.5, 13.4), UNLABELLED)
    assert store.find("b").place is None
    assert store.label({"a": True}) == [Labelled(before)]
    assert store.find("a").label == FRAUD
    assert store.find("a").decision == before.decision
    assert store.find("unheard of") is None


def test_labels_of_other_terminals_and_of_customers_leave_the_rest_alone(store):
    score(store, events_of(("a", "t", "t", NOW_S, 1), ("b", "t", "u", NOW_S, 1)))
    states = window_states(store)
    store.label({"b": True})
    assert frauds(store, "t") == 0
    assert frauds(store, "u") == 1
    assert {key for key, state in window_states(store).items() if state != states[key]} == {b"tu"}


def test_entries_keep_their_order_and_size_when_they_are_labelled(store):
    score(store, events(200, seed=1))
    before, size = store.read_log(), store.bytes_used()
    store.label({entry.transaction_id: n % 2 == 0 for n, (_, entry) in enumerate(before)})
    assert [number for number, _ in store.read_log()] == [number for number, _ in before]
    assert [entry.decision for _, entry in store.read_log()] == [entry.decision for _, entry in before]
    assert store.bytes_used() <= size + 50 * 4096  # the terminals' frauds
    assert_windows_are_the_logs(store)


def test_batch_read_before_a_label_is_recorded_with_it(store):
    score(store, events_of(("a", "c", "t", NOW_S, 1)))
    batch = events_of(("b", "c", "t", NOW_S + 1, 1))
    fetched = store.fetch(batch)
    store.label({"a": True})
    assert commit(store, batch, fetched) == []
    assert frauds(store) == 1
    assert_windows_are_the_logs(store)


def test_fraud_that_came_too_late_to_be_counted_is_labelled_and_counts_nothing(store):
    score(store, events_of(("new", "c", "t", NOW_S + 3 * DAY_S, 1)))
    score(store, events_of(("late", "c", "t", NOW_S, 1)))
    assert labels_met(store.label({"late": True})) == [UNLABELLED]
    assert store.find("late").label == FRAUD
    assert frauds(store) == 0
    store.label({"new": True})
    store.label({"late": False})
    assert frauds(store, now_s=NOW_S + 11 * DAY_S) == 1
    assert_windows_are_the_logs(store)


def test_expired_transaction_is_not_known_any_more_and_its_frauds_stay_counted(path):
    clock = [float(NOW_S)]
    store = open_store(path, max_age_s=100, wall_clock_s=lambda: clock[0], housekeeping_s=3600)
    score(store, events_of(("a", "c", "t", NOW_S, 1)))
    store.label({"a": True})
    clock[0] += 101
    store._housekeep()
    assert store.find("a") is None
    assert labels_met(store.label({"a": False})) == [None]
    assert frauds(store) == 1
    store.close()


def test_many_labels_at_once_are_those_one_after_the_other(store):
    batch = events(1_024, seed=3)
    score(store, batch)
    is_fraud = np.random.default_rng(3).random(1_024) < 0.3
    labelled = store.label(dict(zip(batch.transaction_ids, is_fraud.tolist(), strict=True)))
    assert [one.entry.transaction_id for one in labelled] == batch.transaction_ids
    assert_windows_are_the_logs(store)
    probes = part_of(events(30, seed=4, prefix="probe"), slice(0, 30))
    _, terminal = offline(events_of(*rows_of(batch), *rows_of(probes)), np.append(is_fraud, np.zeros(30, np.bool_)))
    np.testing.assert_array_equal(store.fetch(probes).terminal.totals[0], terminal.totals[1_024])


def rows_of(batch):
    """As `events_of` takes them."""
    columns = (batch.transaction_ids, batch.customer_ids, batch.terminal_ids, batch.event_s, batch.amount_e4)
    return list(zip(*columns, strict=True))


def test_labels_of_two_processes_are_all_counted(path, store):
    batch = events_of(*((f"{n}", "c", "t", NOW_S + n, 1) for n in range(200)))
    score(store, batch)
    with StoreProcess.start(path) as other:
        other.begin(lambda theirs: [theirs.label({f"{n}": True}) for n in range(100)])
        for n in range(100, 200):
            store.label({f"{n}": True})
        other.result()
    assert frauds(store) == 200
    assert_windows_are_the_logs(store)


@pytest.mark.parametrize("call", [lambda store: store.label({"a": True}), lambda store: store.erase("c"),
                                  lambda store: store.find("a")])  # fmt: skip
def test_closed_store_says_so(path, call):
    store = open_store(path)
    store.close()
    assert event_of(lambda: call(store)) == "closed"


def test_online_windows_equal_the_backfill_though_labels_come_between_the_batches(store):
    """All within the time before risk looks at them."""
    rng = np.random.default_rng(5)
    everything = events(2_000, seed=5)
    is_fraud = rng.random(2_000) < 0.2
    arrivals = np.argsort(everything.event_s)
    everything = part_by(everything, arrivals)
    seen = []
    for rows in batches(2_000, rng, largest=100):
        batch = part_of(everything, rows)
        fetched = store.fetch(batch)
        seen.append(fetched)
        commit(store, batch, fetched)
        store.label(dict(zip(batch.transaction_ids, is_fraud[rows].tolist(), strict=True)))
    customer, terminal = offline(everything, is_fraud)
    assert_same_windows(joined([one.customer for one in seen]), customer)
    assert_same_windows(joined([one.terminal for one in seen]), terminal)
    assert terminal.totals[:, -1].max() > 5
    assert_windows_are_the_logs(store)


def part_by(batch, order):
    rows = rows_of(batch)
    return events_of(*(rows[n] for n in order), place=batch.place[order].tolist())
