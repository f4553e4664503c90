"""Windows over a whole history at once, by another way than `kernels.windows`: time order instead of buckets kept.

Takes events grouped by key, in arrival order; gives each event's windows over the key's earlier arrivals. Called by
`serve.features.backfill`; only the definitions (bucket grid, lateness) are shared with the online kernel.

Per key the events are ranked by time; a binary indexed tree over the ranks (Fenwick 1994) holds the count and sum of
those that have arrived, so that a window is the difference of two prefix sums: O(log m) an event, nothing is dropped.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels.windows import BUCKET_S, LATENESS_S, NUM_LEVELS, RETAINED_BUCKETS, WINDOW_BUCKETS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@njit(nogil=True, cache=True)
def window_history(rows: Ints, starts: Ints, event_s: Ints, amount_e4: Ints) -> tuple[Ints, Floats, Flags]:
    """Gives totals int64 [n, 8], seconds since the newest event, and is_late, all in arrival order.

    Key k's events are `rows[starts[k] : starts[k + 1]]`, numbers into `event_s` and `amount_e4`, in arrival order.
    """
    totals = np.zeros((event_s.size, 2 * NUM_LEVELS), np.int64)
    since_last_s = np.full(event_s.size, np.nan)
    is_late = np.zeros(event_s.size, np.bool_)
    for key in range(starts.size - 1):
        own = rows[starts[key] : starts[key + 1]]
        by_time = np.argsort(event_s[own], kind="mergesort")
        times = event_s[own][by_time]
        rank = np.empty_like(by_time)
        rank[by_time] = np.arange(own.size)
        arrived = np.zeros((own.size + 1, 2), np.int64)
        newest_s = times[0]
        for i in range(own.size):
            row = own[i]
            if i > 0:
                since_last_s[row] = max(0, event_s[row] - newest_s)
                is_late[row] = event_s[row] < newest_s - LATENESS_S
                _window_totals(arrived, times, event_s[row], newest_s, totals[row])
            if not is_late[row]:
                newest_s = max(newest_s, event_s[row])
                _add(arrived, rank[i], amount_e4[row])
    return totals, since_last_s, is_late


@njit(nogil=True, cache=True)
def _window_totals(arrived: Ints, times: Ints, now_s: int, newest_s: int, totals: Ints) -> None:
    """Fills one row: what has arrived from the first second of the window's first bucket to the last of its last."""
    for level in range(NUM_LEVELS):
        bucket_s = BUCKET_S[level]
        current, newest = now_s // bucket_s, newest_s // bucket_s
        first = max(current - WINDOW_BUCKETS[level], newest - RETAINED_BUCKETS[level]) + 1
        begin = np.searchsorted(times, first * bucket_s)
        end = max(begin, np.searchsorted(times, (current + 1) * bucket_s))
        totals[level] = _prefix(arrived, end, 0) - _prefix(arrived, begin, 0)
        totals[NUM_LEVELS + level] = _prefix(arrived, end, 1) - _prefix(arrived, begin, 1)


@njit(nogil=True, cache=True)
def _add(arrived: Ints, rank: int, amount_e4: int) -> None:
    """Enters one event of `amount_e4` at `rank`."""
    i = rank + 1
    while i < len(arrived):
        arrived[i, 0] += 1
        arrived[i, 1] += amount_e4
        i += i & -i


@njit(nogil=True, cache=True)
def _prefix(arrived: Ints, end: int, column: int) -> int:
    """The total of the ranks below `end`."""
    total = 0
    while end > 0:
        total += arrived[end, column]
        end -= end & -end
    return total
