"""Online quantile estimates of how long a stage takes at a batch size: what rung and refusal are decided by.

Enters: durations of finished batches. Leaves: a predicted time for the next. Called once per batch, never per request.

The quantile follows the stochastic approximation of Robbins and Monro (1951) on the logarithm of the duration: a step
up by `q` when the sample lies above the estimate, down by `1 - q` when below. Its step is multiplicative, so the same
constants serve microseconds and seconds, and it follows a drift within some tens of batches.
"""

from __future__ import annotations

from math import exp, log

_STEP = 0.08
_FIRST_SAMPLES = 8


class QuantileEstimate:
    """The `q`-quantile of a stream of durations, in constant space."""

    __slots__ = ("_log_ns", "count", "q")

    def __init__(self, q: float = 0.9) -> None:
        self.q = q
        self.count = 0
        self._log_ns = 0.0

    def observe(self, duration_ns: int) -> None:
        """Takes one sample. The first few move the estimate by more, so that it is near at once."""
        sample = log(max(duration_ns, 1))
        self.count += 1
        if self.count == 1:
            self._log_ns = sample
            return
        step = _STEP * max(1.0, _FIRST_SAMPLES / self.count)
        self._log_ns += step * (self.q if sample > self._log_ns else self.q - 1.0)

    @property
    def ns(self) -> int:
        """The estimate in nanoseconds; 0 before the first sample."""
        return int(exp(self._log_ns)) if self.count else 0


class BatchEstimate:
    """Predicts a batch's time from its size: one quantile per power of two, interpolated and extrapolated linearly.

    Sizes never seen are read from their nearest neighbours: between two linearly in the size; above the largest by its
    cost per item; below the smallest by its whole time (a small batch is never predicted to be slower than a larger
    one that was measured).
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
        here = self._buckets[at]
        if here.count:
            return here.ns
        below = next((i for i in range(at - 1, -1, -1) if self._buckets[i].count), None)
        above = next((i for i in range(at + 1, len(self._buckets)) if self._buckets[i].count), None)
        return self._between(at, below, above)

    def _between(self, at: int, below: int | None, above: int | None) -> int:
        if below is None:
            return self._prior_ns if above is None else self._buckets[above].ns
        low_ns = self._buckets[below].ns
        if above is None:
            return low_ns << (at - below)
        share = ((1 << at) - (1 << below)) / ((1 << above) - (1 << below))
        return int(low_ns + share * max(0, self._buckets[above].ns - low_ns))


def _bucket(items: int, num_buckets: int) -> int:
    return min((items - 1).bit_length(), num_buckets - 1)
