"""Plain twin of `kernels.stacking`, in NumPy. Called by tests and by training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.stacking import LEAST

F64 = npt.NDArray[np.float64]


def log_odds(scores: npt.NDArray[np.floating]) -> F64:
    """Of scores of any shape, bounded as the kernel bounds them."""
    bounded = np.clip(np.where(np.isnan(scores), 0.5, scores).astype(np.float64), LEAST, 1.0 - LEAST)
    return np.log(bounded / (1.0 - bounded))


def stack(scores: npt.NDArray[np.floating], weights: F64, bias: float) -> F64:
    """Probabilities [n] of `scores` [n, members]."""
    return np.asarray(1.0 / (1.0 + np.exp(-(log_odds(scores) @ weights + bias))))
