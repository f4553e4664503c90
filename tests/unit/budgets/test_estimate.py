"""Estimates: near the quantile of what was seen, soon after it changes, and never absurd where nothing was seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.estimate import BatchEstimate, QuantileEstimate

MS = 1_000_000
TENS_OF_BATCHES = 99


def fed(samples_ns, q: float = 0.9) -> QuantileEstimate:
    estimate = QuantileEstimate(q)
    for sample_ns in samples_ns:
        estimate.observe(int(sample_ns))
    return estimate


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale_ns", [5_000, 2 * MS, 3_000 * MS])
def test_the_share_of_samples_below_the_estimate_is_the_quantile(q, scale_ns):
    """What Robbins and Monro promise for a stationary stream, whatever its unit."""
    samples_ns = scale_ns * np.random.default_rng(1).lognormal(0, 0.4, 20_000)
    estimate, num_below = QuantileEstimate(q), 0
    for i, sample_ns in enumerate(samples_ns.tolist()):
        num_below += i >= 2_000 and sample_ns <= estimate.ns
        estimate.observe(int(sample_ns))
    assert num_below / 18_000 == pytest.approx(q, abs=0.01)


def test_the_estimate_stays_within_a_half_of_the_true_quantile():
    rng = np.random.default_rng(2)
    true_ns = MS * np.exp(0.4 * 1.2816)
    estimate = fed(MS * rng.lognormal(0, 0.4, 500))
    for sample_ns in MS * rng.lognormal(0, 0.4, 2_000):
        estimate.observe(int(sample_ns))
        assert true_ns / 1.5 < estimate.ns < true_ns * 1.5


def test_a_constant_stream_is_its_own_estimate():
    assert fed([3 * MS] * 200).ns == pytest.approx(3 * MS, rel=0.08)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_estimate_follows_a_jump_within_tens_of_batches(factor):
    estimate = fed([10 * MS] * 300)
    for _ in range(TENS_OF_BATCHES):
        estimate.observe(int(10 * MS * factor))
    assert estimate.ns == pytest.approx(10 * MS * factor, rel=0.25)


def test_one_slow_first_batch_is_forgotten_within_tens_of_batches():
    """The first batch after a start is the one that pays for what is loaded lazily."""
    assert fed([50 * MS] + [MS // 2] * TENS_OF_BATCHES).ns < 2 * MS


def test_one_quick_first_batch_is_forgotten_at_once():
    assert fed([MS // 10] + [MS] * 40).ns == pytest.approx(MS, rel=0.25)


def test_one_outlier_moves_a_settled_estimate_by_less_than_a_tenth():
    estimate = fed([MS] * 300)
    before_ns = estimate.ns
    estimate.observe(10_000 * MS)
    assert estimate.ns < before_ns * 1.1


def test_nothing_seen_is_zero_and_the_first_sample_is_the_estimate():
    assert QuantileEstimate().ns == 0
    assert fed([7 * MS]).ns == pytest.approx(7 * MS, rel=1e-6)


@given(st.lists(st.integers(0, 10**15), max_size=50))
def test_the_estimate_never_leaves_the_range_of_what_was_seen_by_more_than_a_few_steps(samples_ns):
    estimate = fed(samples_ns)
    if samples_ns:
        assert max(min(samples_ns), 1) * 0.3 <= estimate.ns + 1
        assert estimate.ns <= max(*samples_ns, 1, 1) * 3 + 1


# By size


def test_before_anything_was_seen_the_prior_stands_for_every_size():
    estimate = BatchEstimate(prior_ns=123)
    assert [estimate.predict_ns(items) for items in (1, 7, 10**6)] == [123] * 3


def test_no_items_take_no_time_and_are_not_learnt_from():
    estimate = BatchEstimate()
    estimate.observe(0, 10**9)
    estimate.observe(-1, 10**9)
    assert (estimate.predict_ns(0), estimate.predict_ns(1)) == (0, 200_000)


def test_above_the_largest_size_seen_the_cost_grows_as_from_the_smallest_to_it():
    estimate = BatchEstimate()
    estimate.observe(4, 2 * MS)
    estimate.observe(16, 5 * MS)
    assert estimate.predict_ns(64) == pytest.approx(5 * MS + 48 * 3 * MS / 12, rel=1e-3)


def test_from_one_size_alone_a_larger_batch_is_taken_to_cost_mostly_what_does_not_grow():
    estimate = BatchEstimate()
    estimate.observe(4, MS)
    assert estimate.predict_ns(64) == pytest.approx(MS + 60 * MS / 4 / 8, rel=1e-3)


def test_below_the_smallest_size_seen_its_whole_time_is_expected():
    estimate = BatchEstimate()
    estimate.observe(64, MS)
    assert estimate.predict_ns(1) == pytest.approx(MS, rel=1e-3)


def test_between_two_sizes_seen_the_time_is_linear_in_the_size():
    estimate = BatchEstimate()
    estimate.observe(1, MS)
    estimate.observe(16, 16 * MS)
    assert estimate.predict_ns(8) == pytest.approx(8 * MS, rel=1e-3)


observations = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 10**10)), min_size=1, max_size=30)


@given(observations, st.integers(1, 700))
def test_a_small_batch_is_never_predicted_to_be_slower_than_a_larger_one_that_was_measured(seen, items):
    estimate = BatchEstimate()
    for size, duration_ns in seen:
        estimate.observe(size, duration_ns)
    larger = [size for size, _ in seen if size >= items]
    assert all(estimate.predict_ns(items) <= estimate.predict_ns(size) for size in larger)


@given(observations, st.integers(1, 10**7))
def test_any_size_has_a_positive_prediction(seen, items):
    estimate = BatchEstimate()
    for size, duration_ns in seen:
        estimate.observe(size, duration_ns)
    assert estimate.predict_ns(items) >= 0
    assert estimate.predict_ns(items) <= max(duration for _, duration in seen) * 3 * 2**24


def test_a_size_beyond_the_largest_bucket_is_still_predicted():
    estimate = BatchEstimate(max_items=8)
    estimate.observe(10**9, MS)
    assert estimate.predict_ns(10**9) == pytest.approx(MS, rel=1e-3)
