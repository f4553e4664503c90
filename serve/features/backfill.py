"""The features of a whole history, point in time: what the online path would have answered, row by row.

Takes columns of transactions in arrival order; gives the model's rows in the same order. Called by training and by
replay. The windows come from `kernels.window_history`, which shares definitions with the online kernel, not its way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.profiles import NUM_COLUMNS
from kernels.window_history import profile_history, window_history
from serve.features.windows import FEATURES, Flags, Floats, Ints, Windows, assemble, terminal_number


@dataclass(frozen=True, slots=True)
class Backfill:
    """`rows` is float32 [n, F], columns as in `FEATURES`; the windows behind it, in the same order."""

    rows: npt.NDArray[np.float32]
    customer: Windows
    terminal: Windows


def backfill(
    customer_id: npt.NDArray[np.generic],
    terminal_id: npt.NDArray[np.generic],
    event_s: Ints,
    amount_e4: Ints,
    is_fraud: Flags | None = None,
    place: Floats | None = None,
) -> Backfill:
    """Computes every row from the rows that arrived before it; no row sees itself or a later arrival.

    Columns of length n, in arrival order; ids of any sortable dtype, times int64 in UTC seconds from 0 to 2**36 - 1,
    amounts int64 in ten-thousandths up to 1e9. How the arrivals were batched does not matter: a row sees the earlier
    batches and the earlier rows of its own, which is all earlier rows. `is_fraud` are the labels, none for None: a row
    sees those of transactions that were 7 days old, which is when labels count online. `place` [n, 2] is as for
    `Customers`.
    """
    n = len(event_s)
    labels = np.zeros(n, np.bool_) if is_fraud is None else is_fraud
    place = np.full((n, 2), np.nan) if place is None else place
    nothing = np.zeros(n, np.bool_)  # labels are counted of terminals alone
    customer = key_windows(customer_id, event_s, amount_e4, nothing, _Places(_numbers(terminal_id), place))
    terminal = key_windows(terminal_id, event_s, amount_e4, labels)
    rows = np.empty((n, len(FEATURES)), np.float32)
    assemble(amount_e4, event_s, customer, terminal, rows)
    return Backfill(rows, customer, terminal)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where each row was: the terminal's number and the coordinates."""

    terminal: Ints
    place: Floats


def key_windows(
    key: npt.NDArray[np.generic], event_s: Ints, amount_e4: Ints, is_fraud: Flags, places: _Places | None = None
) -> Windows:
    """The windows of every row's key before the row, and with `places` its profile; columns as for `backfill`."""
    _, key_of_row = np.unique(key, return_inverse=True)
    by_key = np.argsort(key_of_row, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(key_of_row))))
    totals, since_last_s, is_late = window_history(by_key, starts, event_s, amount_e4, is_fraud)
    profile = np.full((len(event_s), NUM_COLUMNS), np.nan)
    if places is not None:
        profile = profile_history(by_key, starts, event_s, places.terminal, places.place, is_late)
    return Windows(totals, since_last_s, profile, is_late)


def _numbers(terminal_id: npt.NDArray[np.generic]) -> Ints:
    """Each row's `terminal_number`."""
    terminals, terminal_of_row = np.unique(terminal_id, return_inverse=True)
    return np.array([terminal_number(str(one)) for one in terminals.tolist()], np.int64)[terminal_of_row]
