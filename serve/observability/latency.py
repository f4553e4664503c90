"""Hot: durations into buckets, and percentiles out of them.

Nanoseconds enter, bucket counts (since the start, and per slice of the last minute) stay in the caller's slots,
quantiles leave. One fine bucket scheme serves both; Prometheus' coarser buckets are sums of it. Called by the recorders
and reports.

Log-spaced buckets bound the relative error of every quantile, as in HdrHistogram (Gil Tene) and DDSketch (Masson, Rim,
Lee, VLDB 2019): with neighbouring bounds at most 8 % apart, a bucket's geometric middle is within 4 % of what is in it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

import numpy as np
import numpy.typing as npt

PUBLISHED_MS: Final = (
    *(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 75.0, 100.0),
    *(150.0, 200.0, 300.0, 450.0, 600.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0),
)
"""Bounds that Prometheus may publish; every published budget of the server (50, 60, 100, 300, 450 ms) is among them."""

LOWEST_NS: Final = 1_000
HIGHEST_NS: Final = 100_000_000_000
BOUND_RATIO: Final = 1.08


def _bounds_ns() -> npt.NDArray[np.int64]:
    steps = math.ceil(math.log(HIGHEST_NS / LOWEST_NS, BOUND_RATIO))
    spaced = np.rint(np.geomspace(LOWEST_NS, HIGHEST_NS, steps + 1)).astype(np.int64)
    published = np.rint(np.array(PUBLISHED_MS) * 1e6).astype(np.int64)
    return np.union1d(spaced, published)


BOUNDS_NS: Final = _bounds_ns()
"""Ascending upper bounds (inclusive): bucket i holds (bounds[i-1], bounds[i]], one more holds what is above all."""

NUM_BUCKETS: Final = len(BOUNDS_NS) + 1
_BOUNDS_LIST: Final[list[int]] = BOUNDS_NS.tolist()

SLICE_NS: Final = 10_000_000_000
NUM_SLICES: Final = 7
WINDOW_S: Final = 60
"""Percentiles are of the last 60 s: six whole slices and the one being filled, so 60 to 70 s."""

SLICE_SLOTS: Final = 1 + NUM_BUCKETS
WINDOW_SLOTS: Final = NUM_SLICES * SLICE_SLOTS
"""Slots of a window: per slice its number on the monotonic clock (`now // SLICE_NS`), then its bucket counts."""


class LatencyRecorder:
    """Adds durations to one histogram and one window. Not thread-safe: the owner's lock is held around each call.

    `histogram` is [sum of seconds as float64, counts…], `window` WINDOW_SLOTS long; both int64 views of shared memory.
    """

    def __init__(self, histogram: npt.NDArray[np.int64], window: npt.NDArray[np.int64]) -> None:
        self._counts = histogram[1:]
        self._slices = window.reshape(NUM_SLICES, SLICE_SLOTS)
        # Single items go through memoryviews: three times faster than NumPy's scalar indexing.
        self._histogram = histogram.data
        self._sum_s = histogram[:1].data.cast("B").cast("d")
        self._window = window.data

    def add_many(self, durations_ns: npt.NDArray[np.int64], now_ns: int) -> None:
        """Counts each duration once, in the slice of `now_ns`; int64 [n], n ≥ 1."""
        counts = np.bincount(BOUNDS_NS.searchsorted(durations_ns), minlength=NUM_BUCKETS)
        self._sum_s[0] += float(durations_ns.sum()) * 1e-9
        self._counts += counts
        self._slices[self._current_slice(now_ns), 1:] += counts

    def add_one(self, duration_ns: int, times: int, now_ns: int) -> None:
        """Counts one duration `times` times, in the slice of `now_ns`."""
        bucket = 1 + bisect_left(_BOUNDS_LIST, duration_ns)
        self._sum_s[0] += duration_ns * times * 1e-9
        self._histogram[bucket] += times
        self._window[self._current_slice(now_ns) * SLICE_SLOTS + bucket] += times

    def _current_slice(self, now_ns: int) -> int:
        """Index of the slice of `now_ns`, emptied if it still holds the one of a turn ago."""
        number = now_ns // SLICE_NS
        index = number % NUM_SLICES
        if self._window[index * SLICE_SLOTS] != number:
            self._slices[index, 1:] = 0
            # Last, so that a reader never takes the old counts for the new slice's.
            self._window[index * SLICE_SLOTS] = number
        return index


def window_counts(window: npt.NDArray[np.int64], now_ns: int) -> npt.NDArray[np.int64]:
    """Bucket counts [NUM_BUCKETS] of the slices that are within the window at `now_ns`."""
    slices = window.reshape(NUM_SLICES, SLICE_SLOTS)
    age = now_ns // SLICE_NS - slices[:, 0]
    recent = slices[(age >= 0) & (age < NUM_SLICES), 1:]
    return np.asarray(recent.sum(axis=0), dtype=np.int64)


def quantile_ns(counts: npt.NDArray[np.int64], quantile: float) -> float | None:
    """Nearest-rank quantile of bucket counts, within 4 % between 1 µs and 100 s; None when nothing was counted."""
    total = int(counts.sum())
    if total == 0:
        return None
    rank = max(1, math.ceil(quantile * total))
    bucket = int(np.searchsorted(np.cumsum(counts), rank))
    lower, upper = _BOUNDS_LIST[max(bucket - 1, 0)], _BOUNDS_LIST[min(bucket, NUM_BUCKETS - 2)]
    return math.sqrt(lower * upper)
