"""Plain twin of `kernels.network`, in NumPy and float64. Called by tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kernels.network import CLIP

F64 = npt.NDArray[np.float64]


def inputs(rows: npt.NDArray[np.float32], mean: F64, scale: F64) -> F64:
    """What the first layer sees of `rows`; training uses it too."""
    spread = np.sign(rows) * np.log1p(np.abs(rows.astype(np.float64)))
    return np.where(np.isnan(rows), 0.0, np.clip((spread - mean) * scale, -CLIP, CLIP))


def score(layers: Sequence[tuple[F64, F64]], seen: F64) -> F64:
    """Probabilities [n] of `inputs` [n, features] by layers of (weights [inputs, units], bias [units])."""
    for weights, bias in layers[:-1]:
        seen = np.maximum(seen @ weights + bias, 0.0)
    weights, bias = layers[-1]
    return np.asarray(1.0 / (1.0 + np.exp(-(seen @ weights + bias)[:, 0])))
