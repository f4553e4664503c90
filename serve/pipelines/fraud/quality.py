"""What labels say of the scores they came late for: AUC, precision, recall, and how well probabilities hold.

Takes counts of labelled transactions per part of the log-odds, genuine and fraud; gives measures, and what corrects the
log-odds. Pure. Counts add up over replicas, so all of them agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]

NUM_PARTS = 48
_LOWEST, _WIDTH = -12.0, 0.5
MIDDLES = _LOWEST + _WIDTH * (np.arange(NUM_PARTS) + 0.5)
"""The log-odds in the middle of each part; what is beyond falls into the first or last."""
_MIN_OF_EACH = 100
_STEPS = 100
_SMALLEST_STEP = 1e-9


@dataclass(frozen=True, slots=True)
class Quality:
    """Of what was labelled. `precision` and `recall` are those of stopping, by review or decline; NaN where nobody can
    know yet. `calibration_error` is the mean difference of promised and observed shares of fraud, over parts weighted
    by their transactions (ECE; Naeini, Cooper, Hauskrecht 2015).
    """

    auc_roc: float
    precision: float
    recall: float
    calibration_error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Log-odds z hold as slope * z + shift (Platt 1999)."""

    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, log_odds: Counts) -> Counts:
        """The corrected log-odds."""
        return self.slope * log_odds + self.shift


AS_SCORED = Calibration()


def part_of(log_odds: float) -> int:
    """The part that log-odds fall into."""
    return int(min(max((log_odds - _LOWEST) / _WIDTH, 0), NUM_PARTS - 1))


def quality(genuine: Counts, fraud: Counts, stopped: tuple[float, float]) -> Quality:
    """Of counts per part [NUM_PARTS]; `stopped` are the genuine and the fraud among what was not approved."""
    num_genuine, num_fraud = genuine.sum(), fraud.sum()
    below = np.cumsum(genuine) - genuine
    pairs = num_genuine * num_fraud
    auc_roc = float((fraud * (below + genuine / 2)).sum() / pairs) if pairs else math.nan
    total = genuine + fraud
    promised = 1 / (1 + np.exp(-MIDDLES))
    observed = np.divide(fraud, total, out=np.zeros(NUM_PARTS), where=total > 0)
    error = float((total * np.abs(promised - observed)).sum() / total.sum()) if total.sum() else math.nan
    num_stopped = sum(stopped)
    return Quality(
        auc_roc,
        stopped[1] / num_stopped if num_stopped else math.nan,
        stopped[1] / num_fraud if num_fraud else math.nan,
        error,
    )


def calibrate(genuine: Counts, fraud: Counts) -> Calibration | None:
    """Fitted to counts per part by Newton's method, its steps halved until they help; None before a hundred of each were
    labelled, or where no rising line fits.
    """
    if min(genuine.sum(), fraud.sum()) < _MIN_OF_EACH:
        return None
    total = genuine + fraud
    design = np.stack([MIDDLES, np.ones(NUM_PARTS)], axis=1)

    def loss(parameters: Counts) -> float:
        z = design @ parameters
        return float((total * np.logaddexp(0, z) - fraud * z).sum() + 5e-4 * ((parameters - (1, 0)) ** 2).sum())

    parameters = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ parameters, -30, 30)))
        gradient = design.T @ (total * p - fraud) + 1e-3 * (parameters - (1, 0))
        curvature = (design * (total * p * (1 - p))[:, None]).T @ design + 1e-3 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(parameters - step) > loss(parameters) and np.abs(step).max() > _SMALLEST_STEP:
            step /= 2
        parameters = parameters - step
        if np.abs(step).max() <= _SMALLEST_STEP:
            return Calibration(float(parameters[0]), float(parameters[1])) if parameters[0] > 0 else None
    return None
