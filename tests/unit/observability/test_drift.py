"""Distances from what a model was trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import NotReady
from serve.observability.drift import Drift, Parts, Reference, ks, psi, read_reference

QUARTERS = Parts([-0.67448975, 0.0, 0.67448975], [0.25, 0.25, 0.25, 0.25, 0.0])
REFERENCE = Reference({"a": QUARTERS, "b": QUARTERS}, QUARTERS)
shares = st.lists(st.integers(0, 100), min_size=5, max_size=5).filter(sum).map(lambda some: np.array(some) / sum(some))


def drift_of(rows: np.ndarray, score: np.ndarray, window_rows: int = 1000) -> Drift:
    drift = Drift(REFERENCE, ("a", "b"), window_rows)
    drift.add(rows.astype(np.float32), score.astype(np.float32))
    return drift


def test_the_same_distribution_has_no_distance_and_a_shifted_one_has():
    random = np.random.default_rng(0)
    rows = random.normal(size=(20_000, 2))
    rows[:, 1] += 1
    found = drift_of(rows, rows[:, 0], 100_000).distances()
    assert found is not None
    assert found.feature_psi["a"] < 0.002
    assert found.feature_psi["b"] > 0.5
    assert found.score_psi < 0.002
    assert found.score_ks < 0.02


def test_missing_values_are_a_part_of_their_own():
    rows = np.random.default_rng(0).normal(size=(2000, 2))
    rows[::2, 0] = np.nan
    found = drift_of(rows, rows[:, 1], 10_000).distances()
    assert found is not None
    assert found.feature_psi["a"] > 0.25 > found.feature_psi["b"]


def test_nothing_is_said_before_a_tenth_of_the_window_and_old_rows_leave_it():
    random = np.random.default_rng(0)
    drift = Drift(REFERENCE, ("a", "b"), 1000)
    assert drift.distances() is None
    shifted = (random.normal(size=(1000, 2)) + 5).astype(np.float32)
    drift.add(shifted, shifted[:, 0])
    assert drift.distances().score_psi > 1
    for _ in range(2):
        usual = random.normal(size=(1000, 2)).astype(np.float32)
        drift.add(usual, usual[:, 0])
    assert drift.distances().score_psi < 0.05


@given(shares, shares)
def test_psi_is_symmetric_never_negative_and_finite(p, q):
    assert psi(p, q) == pytest.approx(psi(q, p))
    assert 0 <= psi(p, q) < 100
    assert psi(p, p) == 0


@given(shares, shares)
def test_ks_is_between_nothing_and_all(p, q):
    assert 0 <= ks(p, q) <= 1 + 1e-9
    assert ks(p, p) == 0


@pytest.mark.parametrize(
    "parts",
    [
        {"edges": [1, 1], "shares": [0.5, 0.5, 0, 0]},
        {"edges": [1], "shares": [1, 0]},
        {"edges": [1], "shares": [2, -1, 0]},
        {"edges": "x", "shares": []},
    ],
)
def test_a_reference_that_cannot_be_compared_with_is_refused_by_its_file(tmp_path, parts):
    (tmp_path / "reference.json").write_text(json.dumps({"features": {"a": parts}, "score": parts}))
    with pytest.raises(NotReady, match=r"reference\.json"):
        read_reference(tmp_path, ("a",))
