"""Buckets and percentiles against sorting the durations themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.observability.latency import (
    BOUND_RATIO,
    BOUNDS_NS,
    HIGHEST_NS,
    LOWEST_NS,
    NUM_BUCKETS,
    NUM_SLICES,
    PUBLISHED_MS,
    SLICE_NS,
    WINDOW_SLOTS,
    LatencyRecorder,
    quantile_ns,
    window_counts,
)

NOW_NS = 1_000_000 * SLICE_NS
in_range = st.lists(st.integers(LOWEST_NS, HIGHEST_NS), min_size=1, max_size=300)
any_duration = st.lists(st.integers(-(2**40), 2**50), min_size=1, max_size=100)


def recorder_and_slots() -> tuple[LatencyRecorder, np.ndarray, np.ndarray]:
    histogram, window = np.zeros(1 + NUM_BUCKETS, np.int64), np.zeros(WINDOW_SLOTS, np.int64)
    return LatencyRecorder(histogram, window), histogram, window


def nearest_rank(durations: list[int], quantile: float) -> int:
    return sorted(durations)[max(1, math.ceil(quantile * len(durations))) - 1]


def test_neighbouring_bounds_are_close_enough_for_four_percent() -> None:
    ratios = BOUNDS_NS[1:] / BOUNDS_NS[:-1]
    assert ratios.min() > 1.0
    assert ratios.max() <= BOUND_RATIO + 1e-3
    assert math.sqrt(ratios.max()) - 1 < 0.04
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (LOWEST_NS, HIGHEST_NS)


@given(durations=in_range, quantile=st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_four_percent_of_the_sorted_one(durations: list[int], quantile: float) -> None:
    recorder, _, window = recorder_and_slots()
    recorder.add_many(np.array(durations), NOW_NS)
    measured = quantile_ns(window_counts(window, NOW_NS), quantile)
    assert measured == pytest.approx(nearest_rank(durations, quantile), rel=0.04)


@given(durations=any_duration, times=st.integers(1, 5))
def test_adding_one_by_one_equals_adding_many(durations: list[int], times: int) -> None:
    many, many_histogram, many_window = recorder_and_slots()
    many.add_many(np.repeat(np.array(durations), times), NOW_NS)
    one, one_histogram, one_window = recorder_and_slots()
    for duration in durations:
        one.add_one(duration, times, NOW_NS)
    assert np.array_equal(many_histogram[1:], one_histogram[1:])
    assert np.array_equal(many_window, one_window)
    expected_s = sum(durations) * times / 1e9
    for histogram in (many_histogram, one_histogram):
        assert histogram.view(np.float64)[0] == pytest.approx(expected_s, rel=1e-9, abs=1e-6)


@given(durations=any_duration)
def test_published_buckets_count_exactly_what_is_at_most_their_bound(durations: list[int]) -> None:
    recorder, histogram, _ = recorder_and_slots()
    recorder.add_many(np.array(durations), NOW_NS)
    cumulative = np.cumsum(histogram[1:])
    for bound_ms in PUBLISHED_MS:
        bound_ns = round(bound_ms * 1e6)
        at_most = sum(duration <= bound_ns for duration in durations)
        assert cumulative[np.searchsorted(BOUNDS_NS, bound_ns)] == at_most
    assert cumulative[-1] == len(durations)


@pytest.mark.parametrize("duration_ns", [1, 0, -5, 2**50])
def test_a_duration_outside_the_range_is_counted_at_its_end(duration_ns: int) -> None:
    recorder, _, window = recorder_and_slots()
    recorder.add_one(duration_ns, 1, NOW_NS)
    assert quantile_ns(window_counts(window, NOW_NS), 0.5) == (HIGHEST_NS if duration_ns > HIGHEST_NS else LOWEST_NS)


def test_nothing_measured_has_no_quantile() -> None:
    assert quantile_ns(np.zeros(NUM_BUCKETS, np.int64), 0.99) is None


@settings(max_examples=50)
@given(gaps=st.lists(st.integers(0, 3 * NUM_SLICES), min_size=1, max_size=40))
def test_the_window_holds_what_was_recorded_in_its_seven_slices_and_nothing_older(gaps: list[int]) -> None:
    recorder, _, window = recorder_and_slots()
    recorded: list[int] = []
    now_slice = NOW_NS // SLICE_NS
    for gap in gaps:
        now_slice += gap
        recorder.add_one(5_000_000, 1, now_slice * SLICE_NS + 7)
        recorded.append(now_slice)
        recent = sum(now_slice - NUM_SLICES < one <= now_slice for one in recorded)
        assert window_counts(window, now_slice * SLICE_NS + SLICE_NS - 1).sum() == recent
    assert window_counts(window, (now_slice + NUM_SLICES) * SLICE_NS).sum() == 0
