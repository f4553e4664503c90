"""Columns of transactions for "online equals offline": generated, or the handbook's; in time order or as they arrive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kernels.windows import BUCKET_S, RISK_DELAY_S
from serve.features.backfill import Backfill, backfill
from serve.features.windows import to_ten_thousandths

DAY_S = 86_400
DATA_ROOT = Path(os.environ.get("HEADROOM_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
TRANSACTIONS = DATA_ROOT / "fraud" / "handbook_transactions" / "transactions.parquet"
needs_handbook = pytest.mark.skipif(
    not TRANSACTIONS.exists(), reason=f"no data set at {TRANSACTIONS}; set HEADROOM_DATA"
)


@dataclass(frozen=True)
class Columns:
    """One row per transaction; `is_fraud` is what its last label says."""

    customer: np.ndarray
    terminal: np.ndarray
    event_s: np.ndarray
    amount_e4: np.ndarray
    is_fraud: np.ndarray
    place: np.ndarray

    def rows(self, rows: slice | np.ndarray) -> Columns:
        return Columns(*(getattr(self, column.name)[rows] for column in fields(self)))

    def backfill(self) -> Backfill:
        return backfill(self.customer, self.terminal, self.event_s, self.amount_e4, self.is_fraud, self.place)


def delayed(columns: Columns, rng: np.random.Generator) -> Columns:
    """The same rows in order of arrival, a fifth of them up to 30 hours late: six more than windows wait."""
    event_s = columns.event_s
    delay_s = np.where(rng.random(len(event_s)) < 0.2, rng.integers(0, 30 * 3600, len(event_s)), 0)
    return columns.rows(np.argsort(event_s + delay_s, kind="stable"))


def synthetic(num_rows: int, num_customers: int, num_terminals: int, seed: int) -> Columns:
    """Rows of 40 days in time order, in bursts that share seconds; customer 0 makes a tenth of them."""
    rng = np.random.default_rng(seed)
    customer = np.where(rng.random(num_rows) < 0.1, 0, rng.integers(0, num_customers, num_rows))
    terminal = rng.integers(0, num_terminals, num_rows)
    event_s = 1_600_000_000 + np.sort(rng.integers(0, 40 * DAY_S, num_rows) // 7 * 7)
    amount_e4 = to_ten_thousandths(np.round(rng.lognormal(3, 1, num_rows), 2))
    is_fraud = rng.random(num_rows) < np.where(terminal % 5 == 0, 0.3, 0.02)
    return Columns(customer, terminal, event_s, amount_e4, is_fraud, places_of(customer, rng))


def handbook(num_rows: int) -> Columns:
    """Rows of the lowest customer numbers over the whole period, so that every window rolls; places are made up."""
    import pandas as pd

    names = ["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
    table = pd.read_parquet(TRANSACTIONS, columns=names)
    lowest = table.sort_values("CUSTOMER_ID", kind="stable").head(num_rows).sort_values("TX_DATETIME", kind="stable")
    event_s = lowest["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    customer = lowest["CUSTOMER_ID"].to_numpy()
    return Columns(
        customer,
        lowest["TERMINAL_ID"].to_numpy() % 500,  # few terminals, so that theirs are busy too
        event_s,
        to_ten_thousandths(lowest["TX_AMOUNT"].to_numpy()),
        lowest["TX_FRAUD"].to_numpy().astype(np.bool_),
        places_of(customer, np.random.default_rng(0)),
    )


def places_of(customer: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Around a home of each customer's own, for two thirds of the rows; here and there one end of a place is missing."""
    home = np.stack([customer * 37 % 170 - 85.0, customer * 73 % 360 - 180.0], axis=1)
    place = np.clip(home + rng.normal(0, 2, home.shape), [-90, -180], [90, 180])
    place[rng.random(len(customer)) < 1 / 3] = np.nan
    place[rng.random(len(customer)) < 0.02, 1] = np.nan
    return place


def batches(num_rows: int, rng: np.random.Generator, largest: int = 256) -> Iterator[slice]:
    begin = 0
    while begin < num_rows:
        end = min(num_rows, begin + int(rng.integers(1, largest + 1)))
        yield slice(begin, end)
        begin = end


class Label(NamedTuple):
    """What is said of a row, once the stream has come so far."""

    at_s: int
    row: int
    is_fraud: bool


class Labels:
    """Every fraud's label, at a random time after its arrival and before risk looks at it; of some rows, fraud or not,
    the opposite is said first.
    """

    def __init__(self, columns: Columns, rng: np.random.Generator) -> None:
        arrived_s = np.maximum.accumulate(columns.event_s)
        self._event_s = columns.event_s
        self._counted_s = (columns.event_s // BUCKET_S[-1] + RISK_DELAY_S // BUCKET_S[-1]) * BUCKET_S[-1]
        assert (arrived_s < self._counted_s).all()
        is_disputed = rng.random(len(arrived_s)) < 0.03
        self._pending: list[Label] = []
        for row in np.flatnonzero(columns.is_fraud | is_disputed).tolist():
            early_s, late_s = np.sort(rng.integers(arrived_s[row], self._counted_s[row], 2)).tolist()
            if is_disputed[row]:
                self._pending.append(Label(early_s, row, not columns.is_fraud[row]))
            self._pending.append(Label(late_s, row, bool(columns.is_fraud[row])))
        self._pending.sort(key=lambda label: label.at_s)

    def before(self, batch: slice) -> list[Label]:
        """Those that come after the last batch and before this one ends; none of them late for this one."""
        newest_s = self._event_s[batch].max()
        assert (self._counted_s[batch] > newest_s).all()
        due = [label for label in self._pending if label.at_s <= newest_s and label.row < batch.start]
        self._pending = [label for label in self._pending if label.at_s > newest_s or label.row >= batch.start]
        return due
