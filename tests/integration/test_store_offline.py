"""Online equals offline through the real store, out-of-order arrivals and labels included: on generated transactions,
and on 100 000 of the handbook's, with its labels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve.features.embedded import EmbeddedStore
from serve.features.store import Events, Fetched
from tests.unit.features.store_cases import (
    StoreProcess,
    assert_same_windows,
    assert_windows_are_the_logs,
    commit,
    joined,
    offline,
    open_store,
    part_of,
)
from tests.unit.features.transaction_cases import (
    Columns,
    Labels,
    batches,
    delayed,
    handbook,
    needs_handbook,
    synthetic,
)


def events_of_columns(columns: Columns) -> Events:
    return Events(
        [f"transaction {row}" for row in range(len(columns.event_s))],
        [f"c{n}" for n in columns.customer],
        [f"t{n}" for n in columns.terminal],
        columns.event_s,
        columns.amount_e4,
        columns.place,
    )


def label_and_score(store: EmbeddedStore, labels: dict[str, bool], batch: Events) -> Fetched:
    """What the batch saw; the snapshot stays here."""
    store.label(labels)
    fetched = store.fetch(batch)
    assert commit(store, batch, fetched) == []
    return replace(fetched, snapshot=None)


def online(path: Path, columns: Columns, everything: Events, rng: np.random.Generator) -> list[Fetched]:
    """Two processes take turns; in the middle one is closed and opened again, and the other one is killed."""
    quiet = {"housekeeping_s": 3600.0}  # so that no key is swept
    store, other = open_store(path, **quiet), StoreProcess.start(path, **quiet)
    labels = Labels(columns, rng)
    fetched, num_rows, is_middle_over = [], len(everything.event_s), False
    for turn, rows in enumerate(batches(num_rows, rng)):
        if not is_middle_over and rows.start > num_rows // 2:
            is_middle_over = True
            store.close()
            other.kill()
            store, other = open_store(path, **quiet), StoreProcess.start(path, **quiet)
        batch = part_of(everything, rows)
        due = {everything.transaction_ids[label.row]: label.is_fraud for label in labels.before(rows)}
        if turn % 2:
            fetched.append(other.do(lambda theirs, due=due, batch=batch: label_and_score(theirs, due, batch)))
        else:
            fetched.append(label_and_score(store, due, batch))
    assert_windows_are_the_logs(store)
    store.close()
    other.kill()
    return fetched


def assert_online_is_offline(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    everything = events_of_columns(columns)
    seen = online(path, columns, everything, rng)
    customer, terminal = offline(everything, columns.is_fraud)
    assert customer.is_late.any()
    assert (terminal.is_late & columns.is_fraud).any()
    assert (terminal.totals[:, -1] > 0).mean() > 0.01
    assert_same_windows(joined([one.customer for one in seen]), customer)
    assert_same_windows(joined([one.terminal for one in seen]), terminal)


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_through_the_store_equal_the_backfill_on_generated_transactions(tmp_path, seed):
    rng = np.random.default_rng(seed)
    assert_online_is_offline(tmp_path / "features", delayed(synthetic(6_000, 40, 60, seed), rng), rng)


@pytest.mark.data
@needs_handbook
def test_windows_through_the_store_equal_the_backfill_on_100_000_of_the_handbooks_transactions(tmp_path):
    rng = np.random.default_rng(11)
    assert_online_is_offline(tmp_path / "features", delayed(handbook(100_000), rng), rng)
