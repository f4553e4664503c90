"""The features of a whole history, point in time: what the online path would have answered, row by row.

Takes columns of transactions in arrival order; gives the model's rows in the same order. Called by training and by
replay. The windows come from `kernels.window_history`, which shares definitions with the online kernel, not its way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.window_history import window_history
from serve.features.windows import FEATURES, Ints, Windows, assemble


@dataclass(frozen=True, slots=True)
class Backfill:
    """`rows` is float32 [n, F], columns as in `FEATURES`; the windows behind it, in the same order."""

    rows: npt.NDArray[np.float32]
    customer: Windows
    terminal: Windows


def backfill(
    customer_id: npt.NDArray[np.generic], terminal_id: npt.NDArray[np.generic], event_s: Ints, amount_e4: Ints
) -> Backfill:
    """Computes every row from the rows that arrived before it; no row sees itself or a later arrival.

    Columns of length n, in arrival order; ids of any sortable dtype, times int64 in UTC seconds from 0 to 2**36 - 1,
    amounts int64 in ten-thousandths up to 1e9. How the arrivals were batched does not matter: a row sees the earlier
    batches and the earlier rows of its own, which is all earlier rows.
    """
    customer = key_windows(customer_id, event_s, amount_e4)
    terminal = key_windows(terminal_id, event_s, amount_e4)
    rows = np.empty((len(event_s), len(FEATURES)), np.float32)
    assemble(amount_e4, event_s, customer, terminal, rows)
    return Backfill(rows, customer, terminal)


def key_windows(key: npt.NDArray[np.generic], event_s: Ints, amount_e4: Ints) -> Windows:
    """The windows of every row's key before the row; columns as for `backfill`."""
    _, key_of_row = np.unique(key, return_inverse=True)
    by_key = np.argsort(key_of_row, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(key_of_row))))
    return Windows(*window_history(by_key, starts, event_s, amount_e4))
