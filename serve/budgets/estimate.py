"""Online quantile estimates of how long a stage takes at a batch size: what rung and refusal are decided by.

Enters: durations of finished batches. Leaves: a predicted time for the next. Called once per batch, never per request.

The quantile is the empirical one of the last 64 durations: it follows a jump within tens of batches in both directions,
and one outlier, a first cold batch included, is forgotten as soon as ten others are there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil

_WINDOW = 64
_UNKNOWN_SLOPE = 8


class QuantileEstimate:
    """The `q`-quantile of a stream of durations, in constant space."""

    __slots__ = ("_latest", "_sorted", "q")

    def __init__(self, q: float = 0.9) -> None:
        self.q = q
        self._latest: deque[int] = deque()
        self._sorted: list[int] = []

    @property
    def count(self) -> int:
        """How many samples the estimate rests on."""
        return len(self._sorted)

    def observe(self, duration_ns: int) -> None:
        """Takes one sample; the oldest of a full window leaves."""
        if len(self._latest) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(duration_ns)
        insort(self._sorted, duration_ns)

    @property
    def ns(self) -> int:
        """The estimate in nanoseconds; 0 before the first sample."""
        return self._sorted[ceil(self.q * self.count) - 1] if self._sorted else 0


class BatchEstimate:
    """Predicts a batch's time from its size: one quantile per power of two, interpolated and extrapolated linearly.

    Sizes never seen are read from their neighbours: between two linearly in the size; above the largest by the slope
    from the smallest to it; below the smallest by its whole time (a small batch is never predicted to be slower than
    a larger one that was measured).
    """

    def __init__(self, q: float = 0.9, *, prior_ns: int = 200_000, max_items: int = 1 << 16) -> None:
        self._buckets = [QuantileEstimate(q) for _ in range(max_items.bit_length() + 1)]
        self._measured_ns: dict[int, int] = {}
        self._prior_ns = prior_ns
        self._predicted_ns: dict[int, int] = {}  # what was asked for since the last sample

    def observe(self, items: int, duration_ns: int) -> None:
        """Takes the time one batch of `items` took."""
        if items > 0:
            at = _bucket(items, len(self._buckets))
            self._buckets[at].observe(duration_ns)
            self._measured_ns[at] = self._buckets[at].ns
            self._predicted_ns.clear()

    def predict_ns(self, items: int) -> int:
        """Time a batch of `items` will take, at the estimate's quantile; the prior before anything was seen."""
        if items <= 0:
            return 0
        at = _bucket(items, len(self._buckets))
        predicted_ns = self._predicted_ns.get(at)
        if predicted_ns is None:
            predicted_ns = _prediction(self._measured_ns, at) if self._measured_ns else self._prior_ns
            self._predicted_ns[at] = predicted_ns
        return predicted_ns


def _prediction(measured_ns: dict[int, int], at: int) -> int:
    """Of size 2**at, from the sizes measured: at least one."""
    sizes = sorted(measured_ns, reverse=True)
    largest = above = sizes[0]
    above_ns = measured_ns[largest]
    for size in sizes:
        least_ns = min(above_ns, measured_ns[size])
        if size <= at < above:
            share = ((1 << at) - (1 << size)) / ((1 << above) - (1 << size))
            return int(least_ns + share * (above_ns - least_ns))
        above, above_ns = size, least_ns
    if at < above:
        return above_ns
    slope_ns = _slope_ns(above, above_ns, largest, measured_ns[largest])
    return int(measured_ns[largest] + slope_ns * ((1 << at) - (1 << largest)))


def _slope_ns(smallest: int, smallest_ns: int, largest: int, largest_ns: int) -> float:
    """What an item more costs above the largest size measured, from there to the smallest one measured.

    Most of a small batch's time does not grow with it: to take its whole time per item for the slope would refuse
    at a load that larger batches carry. With one size measured, an eighth of that is assumed.
    """
    if smallest == largest:
        return largest_ns / (1 << largest) / _UNKNOWN_SLOPE
    return max(0.0, (largest_ns - smallest_ns) / ((1 << largest) - (1 << smallest)))


def _bucket(items: int, num_buckets: int) -> int:
    return min((items - 1).bit_length(), num_buckets - 1)
