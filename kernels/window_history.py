"""Windows over a whole history at once, by another way than `kernels.windows`: time order instead of buckets kept.

Takes events grouped by key, in arrival order; gives each event's windows over the key's earlier arrivals. Called by
`serve.features.backfill`; only the definitions (bucket grid, lateness) are shared with the online kernel.

Per key the events are ranked by time; a binary indexed tree over the ranks (Fenwick 1994) holds the count, sum and
frauds of those that have arrived, so that a window is the difference of two prefix sums: O(log m) an event, nothing is
dropped.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels import profiles
from kernels.windows import (
    BUCKET_S,
    LATENESS_S,
    NUM_LEVELS,
    NUM_RISKS,
    NUM_TOTALS,
    RETAINED_BUCKETS,
    RISK_BUCKETS,
    RISK_DELAY_S,
    WINDOW_BUCKETS,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@njit(nogil=True, cache=True)
def window_history(
    rows: Ints, starts: Ints, event_s: Ints, amount_e4: Ints, is_fraud: Flags
) -> tuple[Ints, Floats, Flags]:
    """Gives totals int64 [n, NUM_TOTALS], seconds since the newest event, and is_late, all in arrival order.

    Key k's events are `rows[starts[k] : starts[k + 1]]`, numbers into the columns, in arrival order. `is_fraud` is what
    labels will say by the time risk looks at the event.
    """
    totals = np.zeros((event_s.size, NUM_TOTALS), np.int64)
    since_last_s = np.full(event_s.size, np.nan)
    is_late = np.zeros(event_s.size, np.bool_)
    for key in range(starts.size - 1):
        own = rows[starts[key] : starts[key + 1]]
        by_time = np.argsort(event_s[own], kind="mergesort")
        times = event_s[own][by_time]
        rank = np.empty_like(by_time)
        rank[by_time] = np.arange(own.size)
        arrived = np.zeros((own.size + 1, 3), np.int64)
        newest_s = times[0]
        for i in range(own.size):
            row = own[i]
            if i > 0:
                since_last_s[row] = max(0, event_s[row] - newest_s)
                is_late[row] = event_s[row] < newest_s - LATENESS_S
                _window_totals(arrived, times, event_s[row], newest_s, totals[row])
            if not is_late[row]:
                newest_s = max(newest_s, event_s[row])
                _add(arrived, rank[i], amount_e4[row], is_fraud[row])
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
    bucket_s = BUCKET_S[NUM_LEVELS - 1]
    newest, last = newest_s // bucket_s, now_s // bucket_s - RISK_DELAY_S // bucket_s
    for risk in range(NUM_RISKS):
        first = max(last - RISK_BUCKETS[risk], newest - RETAINED_BUCKETS[NUM_LEVELS - 1]) + 1
        begin = np.searchsorted(times, first * bucket_s)
        end = max(begin, np.searchsorted(times, (last + 1) * bucket_s))
        totals[2 * NUM_LEVELS + risk] = _prefix(arrived, end, 0) - _prefix(arrived, begin, 0)
        totals[2 * NUM_LEVELS + NUM_RISKS + risk] = _prefix(arrived, end, 2) - _prefix(arrived, begin, 2)


@njit(nogil=True, cache=True)
def _add(arrived: Ints, rank: int, amount_e4: int, is_fraud: bool) -> None:
    """Enters one event of `amount_e4` at `rank`."""
    i = rank + 1
    while i < len(arrived):
        arrived[i, 0] += 1
        arrived[i, 1] += amount_e4
        arrived[i, 2] += is_fraud
        i += i & -i


@njit(nogil=True, cache=True)
def _prefix(arrived: Ints, end: int, column: int) -> int:
    """The total of the ranks below `end`."""
    total = 0
    while end > 0:
        total += arrived[end, column]
        end -= end & -end
    return total


@njit(nogil=True, cache=True)
def profile_history(rows: Ints, starts: Ints, event_s: Ints, terminal: Ints, place: Floats, is_late: Flags) -> Floats:
    """Gives every event's profile columns (`kernels.profiles`), float64 [n, NUM_COLUMNS], in arrival order.

    Profiles depend on the order of arrivals alone, so here is no other way to compute them: the same functions run over
    whole histories. Their plain twin is in `kernels.reference_windows`.
    """
    seen = np.empty((event_s.size, profiles.NUM_COLUMNS))
    profile = np.zeros(profiles.MAX_WORDS, np.int64)
    for key in range(starts.size - 1):
        profile[:] = 0
        size, newest_s = 0, -1
        for row in rows[starts[key] : starts[key + 1]]:
            now_s = event_s[row]
            profiles.see(profile, size, newest_s, now_s, terminal[row], place[row, 0], place[row, 1], seen[row])
            if not is_late[row]:
                newest_s = max(newest_s, now_s)
                size = profiles.enter(profile, size, now_s, terminal[row], place[row, 0], place[row, 1])
    return seen
