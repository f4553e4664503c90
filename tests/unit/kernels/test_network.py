"""The network and stacking kernels against their plain twins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels import reference_network, reference_stacking
from kernels.network import score_network
from kernels.stacking import fill, stack

AWKWARD = [0.0, -0.0, 1.0, -1e9, np.nan, np.inf, -np.inf, 1e-45, -1e-45, np.finfo(np.float32).max, 3e38]
values = st.one_of(st.sampled_from(AWKWARD), st.floats(-1e6, 1e6, width=32))


def network(random: np.random.Generator, sizes: tuple[int, ...]):
    layers = [(random.normal(size=(a, b)), random.normal(size=b)) for a, b in pairwise(sizes)]
    flat = np.concatenate([part.ravel() for layer in layers for part in layer]).astype(np.float32)
    return layers, np.array(sizes, np.int64), flat


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([(3, 1), (3, 4, 1), (3, 8, 5, 1), (3, 33, 1)]),
    hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=values),
)
def test_the_network_scores_as_its_twin(seed, sizes, rows):
    random = np.random.default_rng(seed)
    layers, widths, weights = network(random, sizes)
    mean, scale = random.normal(size=3), np.abs(random.normal(size=3)) + 0.1
    out = np.full(len(rows), 7, np.float32)
    score_network(rows, mean.astype(np.float32), scale.astype(np.float32), widths, weights, out)
    expected = reference_network.score(layers, reference_network.inputs(rows, mean, scale))
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    assert ((out >= 0) & (out <= 1)).all()


def test_a_missing_value_counts_as_the_mean():
    random = np.random.default_rng(0)
    _, widths, weights = network(random, (2, 4, 1))
    mean, scale = np.array([np.log1p(5), 0], np.float32), np.ones(2, np.float32)
    out = np.empty(2, np.float32)
    score_network(np.array([[np.nan, 1], [5, 1]], np.float32), mean, scale, widths, weights, out)
    assert out[0] == pytest.approx(out[1], abs=1e-6)


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(0, 6), st.just(3)), elements=st.floats(0, 1, width=32) | st.just(np.nan)
    ),
    st.lists(st.floats(0, 3), min_size=3, max_size=3),
    st.floats(-5, 5),
)
def test_stacking_is_a_logistic_regression_on_log_odds(scores, weights, bias):
    log_odds, out = np.empty(len(scores)), np.empty(len(scores), np.float32)
    stack(scores, np.array(weights), bias, log_odds, out)
    expected = reference_stacking.stack(scores, np.array(weights), bias)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-log_odds)), rtol=1e-6, atol=1e-30)


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.just(3)), elements=values))
def test_filling_replaces_what_is_missing_and_nothing_else(rows):
    means, out = np.array([1, 2, 3], np.float32), np.empty_like(rows)
    fill(rows, means, out)
    np.testing.assert_array_equal(out, np.where(np.isnan(rows), means, rows))
