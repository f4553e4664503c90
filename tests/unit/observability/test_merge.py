"""Merging the images of several processes, without files or processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.observability.families import BUDGET, REQUEST_WINDOW
from serve.observability.folder import merge
from serve.observability.latency import (
    NUM_BUCKETS,
    NUM_SLICES,
    SLICE_NS,
    WINDOW_SLOTS,
    LatencyRecorder,
    window_counts,
)
from serve.observability.process import NO_PROCESS, boot_number, this_process
from serve.observability.shared import Image, Kind, MetricsFile, Series


def window_at(*slice_numbers: int) -> np.ndarray:
    window = np.zeros(WINDOW_SLOTS, np.int64)
    recorder = LatencyRecorder(np.zeros(1 + NUM_BUCKETS, np.int64), window)
    for number in slice_numbers:
        recorder.add_one(5_000_000, 1, number * SLICE_NS)
    return window


@given(
    mine=st.lists(st.integers(1_000, 1_020), max_size=30).map(sorted),
    other=st.lists(st.integers(1_000, 1_020), max_size=30).map(sorted),
)
def test_merged_windows_hold_the_recent_slices_of_both(mine: list[int], other: list[int]) -> None:
    series = REQUEST_WINDOW.series("fraud")
    images = [Image(this_process(), 0, {series: window_at(*numbers)}, frozenset()) for numbers in (mine, other)]
    merged = merge(images)[series]
    now = max([*mine, *other, 1_000])
    expected = sum(now - NUM_SLICES < number for number in mine + other)
    assert window_counts(merged, now * SLICE_NS).sum() == expected


def test_windows_of_another_boot_or_another_version_are_left_out() -> None:
    window, old_size = REQUEST_WINDOW.series("fraud"), Series(Kind.WINDOW, "headroom_request_window", ("fraud",), 70)
    other_boot = dataclasses.replace(NO_PROCESS, boot=boot_number() + 1)
    ended = dataclasses.replace(NO_PROCESS, boot=boot_number())
    slots = {window: window_at(5), old_size: np.zeros(70, np.int64)}
    assert merge([Image(other_boot, 0, slots, frozenset())]) == {}
    assert list(merge([Image(ended, 0, slots, frozenset())])) == [window]


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
def test_counters_and_gauges_are_summed_and_largest_gauges_kept(values: list[float]) -> None:
    kinds = (Kind.COUNTER, Kind.GAUGE_SUM, Kind.GAUGE_MAX)
    images = [
        Image(this_process(), 0, {Series(k, k, (), 1): np.array([v]).view(np.int64) for k in kinds}, frozenset())
        for v in values
    ]
    merged = {series.kind: slots.view(np.float64)[0] for series, slots in merge(images).items()}
    assert merged[Kind.COUNTER] == merged[Kind.GAUGE_SUM] == pytest.approx(sum(values), abs=1e-6)
    assert merged[Kind.GAUGE_MAX] == max(values)


def test_a_budget_that_only_one_replica_publishes_is_kept() -> None:
    series = Series(Kind.GAUGE_MAX, BUDGET.name, ("fraud", "score"), 1)
    images = [
        Image(this_process(), 0, {series: np.array([value]).view(np.int64)}, frozenset()) for value in (np.nan, 0.01)
    ]
    assert merge(images)[series].view(np.float64)[0] == 0.01


def test_merging_leaves_its_inputs_as_they_were(tmp_path: Path) -> None:
    file = MetricsFile.create(tmp_path, overflow="overflow")
    image = file.image()
    before = {series: slots.copy() for series, slots in image.series.items()}
    merged = merge([image, image])
    for slots in merged.values():
        slots[:] = -1
    assert all(np.array_equal(image.series[series], slots) for series, slots in before.items())
