"""Hot: combines the scores of an ensemble's members: a logistic regression on their log-odds.

Enters: members' scores, float32 [n, members]. Leaves: probabilities [n] and their log-odds. Called by
`serve.backends.stacked`; twin: `kernels.reference_stacking`. Stacking as in Wolpert 1992, "Stacked generalization".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LEAST = 1e-6
"""Scores count as at least this, and at most one less it: beyond, a float32 carries no evidence."""


@njit(nogil=True, cache=True, error_model="numpy")
def stack(scores: F32, weights: F64, bias: float, log_odds: F64, out: F32) -> None:
    """`scores` [n, members] into `log_odds` [n] and probabilities `out` [n]; a score that is no number counts as 0.5."""
    for row in range(scores.shape[0]):
        total = bias
        for member in range(scores.shape[1]):
            score = float(scores[row, member])
            if not np.isnan(score):
                score = min(max(score, LEAST), 1.0 - LEAST)
                total += float(weights[member]) * np.log(score / (1.0 - score))
        log_odds[row] = total
        out[row] = 1.0 / (1.0 + np.exp(-total))


@njit(nogil=True, cache=True, error_model="numpy")
def fill(rows: F32, values: F32, out: F32) -> None:
    """`rows` [n, features] into `out`, what is missing replaced by `values` [features]."""
    for row in range(rows.shape[0]):
        for feature in range(rows.shape[1]):
            value = rows[row, feature]
            out[row, feature] = values[feature] if np.isnan(value) else value
