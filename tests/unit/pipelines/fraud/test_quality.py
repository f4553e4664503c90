"""What labels say of scores: measures against scikit-learn's, and what corrects the probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from serve.pipelines.fraud.quality import MIDDLES, NUM_PARTS, calibrate, part_of, quality

counts = st.lists(st.integers(0, 50), min_size=NUM_PARTS, max_size=NUM_PARTS).map(lambda some: np.array(some, float))


@given(st.floats(-1e6, 1e6))
def test_all_log_odds_have_a_part_near_them(log_odds):
    part = part_of(log_odds)
    assert 0 <= part < NUM_PARTS
    if abs(log_odds) < 12:
        assert abs(MIDDLES[part] - log_odds) <= 0.25 + 1e-9


@given(counts, counts)
def test_auc_is_that_of_the_parts(genuine, fraud):
    found = quality(genuine, fraud, (0, 0)).auc_roc
    if not genuine.sum() or not fraud.sum():
        assert math.isnan(found)
        return
    score = np.concatenate([MIDDLES, MIDDLES])
    is_fraud = np.repeat([False, True], NUM_PARTS)
    expected = roc_auc_score(is_fraud, score, sample_weight=np.concatenate([genuine, fraud]))
    assert found == pytest.approx(expected)


def test_precision_and_recall_are_of_what_was_stopped():
    genuine, fraud = np.zeros(NUM_PARTS), np.zeros(NUM_PARTS)
    genuine[10], fraud[40] = 900, 100
    found = quality(genuine, fraud, (20, 60))
    assert (found.precision, found.recall) == (0.75, 0.6)
    assert math.isnan(quality(genuine, np.zeros(NUM_PARTS), (0, 0)).precision)


def drawn(slope: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of scores that ought to be slope * z + shift."""
    total = np.full(NUM_PARTS, 1000.0)
    share = 1 / (1 + np.exp(-(slope * MIDDLES + shift)))
    return total * (1 - share), total * share


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.5, 1.0), (2.0, -3.0), (1.0, 2.5)])
def test_calibration_finds_what_the_log_odds_should_have_been(slope, shift):
    found = calibrate(*drawn(slope, shift))
    assert found is not None
    assert (found.slope, found.shift) == pytest.approx((slope, shift), abs=0.02)


def test_perfect_probabilities_have_hardly_any_calibration_error_and_shifted_ones_have_some():
    assert quality(*drawn(1.0, 0.0), (0, 0)).calibration_error < 1e-6
    assert quality(*drawn(1.0, 2.0), (0, 0)).calibration_error > 0.05


@given(counts, counts)
def test_calibration_keeps_the_order_of_scores_or_there_is_none(genuine, fraud):
    found = calibrate(genuine, fraud)
    assert found is None or (found.slope > 0 and math.isfinite(found.shift))


def test_few_labels_correct_nothing():
    genuine, fraud = drawn(1.0, 2.0)
    assert calibrate(genuine, fraud * 0) is None
    assert calibrate(genuine / 1e6, fraud) is None
