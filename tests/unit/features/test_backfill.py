"""Online equals offline, bit for bit and point in time: `advance` batch by batch against `backfill` at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.features.backfill import backfill, key_windows
from serve.features.windows import FEATURES, advance, assemble, to_ten_thousandths

DAY_S = 86_400
DATA_ROOT = Path(os.environ.get("HEADROOM_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
TRANSACTIONS = DATA_ROOT / "fraud" / "handbook_transactions" / "transactions.parquet"

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def delayed(columns: Columns, rng: np.random.Generator) -> Columns:
    """The same rows in order of arrival, a fifth of them up to 30 hours late."""
    event_s = columns[2]
    delay_s = np.where(rng.random(len(event_s)) < 0.2, rng.integers(0, 30 * 3600, len(event_s)), 0)
    arrival = np.argsort(event_s + delay_s, kind="stable")
    return tuple(column[arrival] for column in columns)


def synthetic(num_rows: int, num_customers: int, num_terminals: int, seed: int) -> Columns:
    """Rows of 40 days in time order, in bursts that share seconds; customer 0 makes a tenth of them."""
    rng = np.random.default_rng(seed)
    customer = np.where(rng.random(num_rows) < 0.1, 0, rng.integers(0, num_customers, num_rows))
    event_s = 1_600_000_000 + np.sort(rng.integers(0, 40 * DAY_S, num_rows) // 7 * 7)
    amount_e4 = to_ten_thousandths(np.round(rng.lognormal(3, 1, num_rows), 2))
    return customer, rng.integers(0, num_terminals, num_rows), event_s, amount_e4


def handbook(num_rows: int) -> Columns:
    """Rows of the lowest customer numbers over the whole period, so that every window rolls."""
    import pandas as pd

    table = pd.read_parquet(TRANSACTIONS, columns=["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"])
    lowest = table.sort_values("CUSTOMER_ID", kind="stable").head(num_rows).sort_values("TX_DATETIME", kind="stable")
    event_s = lowest["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    amount_e4 = to_ten_thousandths(lowest["TX_AMOUNT"].to_numpy())
    # Few terminals, so that theirs are busy too.
    return lowest["CUSTOMER_ID"].to_numpy(), lowest["TERMINAL_ID"].to_numpy() % 500, event_s, amount_e4


def batches(num_rows: int, rng: np.random.Generator) -> Iterator[slice]:
    begin = 0
    while begin < num_rows:
        end = min(num_rows, begin + int(rng.integers(1, 257)))
        yield slice(begin, end)
        begin = end


def online(columns: Columns, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and lateness (customer, terminal) as a store would make them: states in a dict, one call a batch."""
    rows = np.empty((len(columns[0]), len(FEATURES)), np.float32)
    is_late = np.empty((len(columns[0]), 2), np.bool_)
    states: dict[tuple[str, int], bytes] = {}
    for batch in batches(len(rows), rng):
        customer, terminal, event_s, amount_e4 = (column[batch] for column in columns)
        keys = [*(("customer", id_) for id_ in customer.tolist()), *(("terminal", id_) for id_ in terminal.tolist())]
        position = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        key_of_row = np.array([position[key] for key in keys], np.int32)
        n = len(event_s)
        step = advance([states.get(key) for key in position], key_of_row, np.tile(event_s, 2), np.tile(amount_e4, 2))
        states.update(zip(position, step.new_states(), strict=True))
        seen_customer, seen_terminal = step.windows.rows(0, n), step.windows.rows(n, 2 * n)
        assemble(amount_e4, event_s, seen_customer, seen_terminal, rows[batch])
        is_late[batch] = np.stack([seen_customer.is_late, seen_terminal.is_late], axis=1)
    return rows, is_late


def assert_online_equals_offline(columns: Columns, seed: int) -> None:
    rows, is_late = online(columns, np.random.default_rng(seed))
    offline = backfill(*columns)
    np.testing.assert_array_equal(is_late, np.stack([offline.customer.is_late, offline.terminal.is_late], axis=1))
    np.testing.assert_array_equal(rows.view(np.uint32), offline.rows.view(np.uint32))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_online_equals_offline_on_rows_in_order(seed):
    assert_online_equals_offline(synthetic(4_000, 40, 25, seed), seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_online_equals_offline_on_rows_out_of_order_and_late(seed):
    columns = delayed(synthetic(6_000, 30, 20, seed), np.random.default_rng(seed))
    assert backfill(*columns).customer.is_late.sum() > 20
    assert_online_equals_offline(columns, seed)


@pytest.mark.data
@pytest.mark.skipif(not TRANSACTIONS.exists(), reason=f"no data set at {TRANSACTIONS}; set HEADROOM_DATA")
def test_online_equals_offline_on_100_000_real_transactions_out_of_order():
    columns = delayed(handbook(100_000), np.random.default_rng(7))
    offline = backfill(*columns)
    assert len(offline.rows) == 100_000
    assert offline.customer.is_late.sum() > 500
    assert offline.terminal.is_late.sum() > 500
    assert_online_equals_offline(columns, seed=11)


def test_a_row_does_not_depend_on_later_arrivals():
    columns = delayed(synthetic(2_000, 20, 10, seed=5), np.random.default_rng(5))
    whole = backfill(*columns).rows
    half = backfill(*(column[:1_000] for column in columns)).rows
    assert whole[:1_000].tobytes() == half.tobytes()


def test_ids_may_be_text_and_give_the_rows_of_the_numbers():
    customer, terminal, event_s, amount_e4 = synthetic(500, 10, 5, seed=6)
    text = backfill(customer.astype(str), terminal.astype(str), event_s, amount_e4)
    assert text.rows.tobytes() == backfill(customer, terminal, event_s, amount_e4).rows.tobytes()


def test_no_rows_give_no_rows():
    nothing = np.empty(0, np.int64)
    assert backfill(nothing, nothing, nothing, nothing).rows.shape == (0, len(FEATURES))


def test_first_row_of_a_key_knows_nothing():
    seen = key_windows(np.array([3, 9]), np.array([100, 50]), np.array([5, 5]))
    assert not seen.totals.any()
    assert np.isnan(seen.since_last_s).all()
