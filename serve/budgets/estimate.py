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
        self._prior_ns = prior_ns

    def observe(self, items: int, duration_ns: int) -> None:
        """Takes the time one batch of `items` took."""
        if items > 0:
            self._buckets[_bucket(items, len(self._buckets))].observe(duration_ns)

    def predict_ns(self, items: int) -> int:
        """Time a batch of `items` will take, at the estimate's quantile; the prior before anything was seen."""
        if items <= 0:
            return 0
        at = _bucket(items, len(self._buckets))
        below = next((i for i in range(at, -1, -1) if self._buckets[i].count), None)
        above = next((i for i in range(at, len(self._buckets)) if self._buckets[i].count), None)
        if below is None:
            return self._prior_ns if above is None else self._at_most(above)
        low_ns = self._at_most(below)
        if above is None:
            return int(low_ns + self._slope_ns(below) * ((1 << at) - (1 << below)))
        share = ((1 << at) - (1 << below)) / max(1, (1 << above) - (1 << below))
        return int(low_ns + share * (self._at_most(above) - low_ns))

    def _slope_ns(self, largest: int) -> float:
        """What an item more costs above the largest size measured, from there to the smallest one measured.

        Most of a small batch's time does not grow with it: to take its whole time per item for the slope would refuse
        at a load that larger batches carry. With one size measured, an eighth of that is assumed.
        """
        smallest = next(i for i, bucket in enumerate(self._buckets) if bucket.count)
        if smallest == largest:
            return self._buckets[largest].ns / (1 << largest) / _UNKNOWN_SLOPE
        rise_ns = self._buckets[largest].ns - self._at_most(smallest)
        return max(0.0, rise_ns / ((1 << largest) - (1 << smallest)))

    def _at_most(self, at: int) -> int:
        """The smallest estimate of the sizes of bucket `at` and larger."""
        return min(bucket.ns for bucket in self._buckets[at:] if bucket.count)


def _bucket(items: int, num_buckets: int) -> int:
    return min((items - 1).bit_length(), num_buckets - 1)
