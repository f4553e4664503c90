"""Online equals offline, bit for bit and point in time: `advance` batch by batch against `backfill` at once."""

from __future__ import annotations

import numpy as np
import pytest

from serve.features.backfill import backfill, key_windows
from serve.features.windows import FEATURES, PROFILE, Customers, advance, assemble, mark, terminal_number
from tests.unit.features.transaction_cases import (
    DAY_S,
    Columns,
    Labels,
    batches,
    delayed,
    handbook,
    needs_handbook,
    synthetic,
)

LATEST_LABEL_S = 7 * DAY_S - 6 * 3600


def online(columns: Columns, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, profiles and lateness (customer, terminal) as a store would make them: states in a dict, one call a batch,
    and labels between batches.
    """
    num_rows = len(columns.event_s)
    rows = np.empty((num_rows, len(FEATURES)), np.float32)
    profile = np.empty((num_rows, len(PROFILE)))
    is_late = np.empty((num_rows, 2), np.bool_)
    states: dict[tuple[str, int], bytes] = {}
    labels, frauds = Labels(columns, rng), set[int]()
    for batch in batches(num_rows, rng):
        for label in labels.before(batch):
            key = ("terminal", columns.terminal[label.row])
            is_known_so = label.is_fraud == (label.row in frauds)
            if not is_known_so and not is_late[label.row, 1]:
                states[key] = mark(states[key], int(columns.event_s[label.row]), is_fraud=label.is_fraud)
                frauds ^= {label.row}
        one = columns.rows(batch)
        n = len(one.event_s)
        position: dict[tuple[str, int], int] = {}
        for kind, ids in (("customer", one.customer), ("terminal", one.terminal)):
            for id_ in ids.tolist():
                position.setdefault((kind, id_), len(position))
        key_of_row = [position["customer", id_] for id_ in one.customer.tolist()]
        key_of_row += [position["terminal", id_] for id_ in one.terminal.tolist()]
        customers = Customers(
            len(set(one.customer.tolist())), np.array([terminal_number(str(id_)) for id_ in one.terminal]), one.place
        )
        step = advance(
            [states.get(key) for key in position],
            np.array(key_of_row, np.int32),
            np.tile(one.event_s, 2),
            np.tile(one.amount_e4, 2),
            customers,
        )
        states.update(zip(position, step.new_states(), strict=True))
        seen_customer, seen_terminal = step.windows.rows(0, n), step.windows.rows(n, 2 * n)
        assemble(one.amount_e4, one.event_s, seen_customer, seen_terminal, rows[batch])
        profile[batch] = seen_customer.profile
        is_late[batch] = np.stack([seen_customer.is_late, seen_terminal.is_late], axis=1)
    return rows, profile, is_late


def assert_online_equals_offline(columns: Columns, seed: int) -> None:
    rows, profile, is_late = online(columns, np.random.default_rng(seed))
    offline = columns.backfill()
    np.testing.assert_array_equal(is_late, np.stack([offline.customer.is_late, offline.terminal.is_late], axis=1))
    np.testing.assert_array_equal(rows.view(np.uint32), offline.rows.view(np.uint32))
    np.testing.assert_array_equal(profile.view(np.uint64), offline.customer.profile.view(np.uint64))
    seen = dict(zip(FEATURES, rows.T, strict=True))
    assert (seen["terminal_frauds_7d"] > 0).sum() > len(rows) / 100
    assert 0 < np.nanmean(seen["is_new_terminal"]) < 1
    assert (profile[:, 2] > 0).sum() > len(rows) / 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_online_equals_offline_on_rows_in_order(seed):
    assert_online_equals_offline(synthetic(4_000, 40, 25, seed), seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_online_equals_offline_on_rows_out_of_order_and_late(seed):
    columns = delayed(synthetic(6_000, 30, 20, seed), np.random.default_rng(seed))
    assert columns.backfill().customer.is_late.sum() > 20
    assert (columns.backfill().terminal.is_late & columns.is_fraud).any()
    assert_online_equals_offline(columns, seed)


@pytest.mark.data
@needs_handbook
def test_online_equals_offline_on_100_000_real_transactions_out_of_order():
    columns = delayed(handbook(100_000), np.random.default_rng(7))
    offline = columns.backfill()
    assert len(offline.rows) == 100_000
    assert offline.customer.is_late.sum() > 500
    assert offline.terminal.is_late.sum() > 500
    assert_online_equals_offline(columns, seed=11)


def test_a_row_does_not_depend_on_later_arrivals():
    columns = delayed(synthetic(2_000, 20, 10, seed=5), np.random.default_rng(5))
    half = columns.rows(slice(0, 1_000))
    assert columns.backfill().rows[:1_000].tobytes() == half.backfill().rows.tobytes()
    assert columns.backfill().customer.profile[:1_000].tobytes() == half.backfill().customer.profile.tobytes()


def test_ids_may_be_text_and_give_the_rows_of_the_numbers():
    columns = synthetic(500, 10, 5, seed=6)
    text = backfill(
        columns.customer.astype(str), columns.terminal.astype(str), columns.event_s, columns.amount_e4,
        columns.is_fraud, columns.place,
    )  # fmt: skip
    assert text.rows.tobytes() == columns.backfill().rows.tobytes()


def test_without_labels_and_places_nothing_is_fraud_and_nobody_has_a_home():
    columns = synthetic(2_000, 20, 10, seed=4)
    plain = backfill(columns.customer, columns.terminal, columns.event_s, columns.amount_e4)
    labelled = columns.backfill()
    assert np.isnan(plain.customer.profile[:, 2:]).all()
    np.testing.assert_array_equal(plain.customer.profile[:, :2], labelled.customer.profile[:, :2])
    is_label = np.array(["risk" in name or "frauds" in name for name in FEATURES])
    np.testing.assert_array_equal(plain.rows[:, ~is_label], labelled.rows[:, ~is_label])
    assert np.nanmax(plain.rows[:, is_label]) == 0


def test_label_counts_from_seven_days_of_six_hours_after_its_event_and_none_before():
    """What is labelled within six days and 18 hours is known online, too, when it is first counted."""
    seconds = np.array([0, LATEST_LABEL_S - 1, 7 * DAY_S - 1, 7 * DAY_S, 8 * DAY_S])
    for begin_s in (0, 6 * 3600 - 1):
        event_s = np.append([begin_s], seconds[1:])
        seen = backfill(np.arange(5), np.zeros(5, np.int64), event_s, np.ones(5, np.int64), np.arange(5) == 0)
        assert seen.terminal.totals[:, 11].tolist() == [0, 0, 0, 1, 0]
        assert seen.terminal.totals[:, 12].tolist() == [0, 0, 0, 1, 1]


def test_fraud_that_came_too_late_for_its_terminal_is_neither_counted_nor_a_fraud():
    event_s = np.array([10, 12, 2, 20]) * DAY_S
    seen = backfill(np.arange(4), np.zeros(4, np.int64), event_s, np.ones(4, np.int64), np.arange(4) == 2)
    assert seen.terminal.is_late.tolist() == [False, False, True, False]
    assert seen.terminal.totals[3, 8:].tolist() == [0, 2, 2, 0, 0, 0]


def test_no_rows_give_no_rows():
    nothing = np.empty(0, np.int64)
    assert backfill(nothing, nothing, nothing, nothing).rows.shape == (0, len(FEATURES))


def test_first_row_of_a_key_knows_nothing():
    seen = key_windows(np.array([3, 9]), np.array([100, 50]), np.array([5, 5]), np.array([True, True]))
    assert not seen.totals.any()
    assert np.isnan(seen.since_last_s).all()
    assert np.isnan(seen.profile).all()
