"""Hot file: sliding windows per key, in ≤ 1.5 µs per row and key at 60 transactions in 30 days and batches of 8 up.

Takes the concatenated states of a batch's distinct keys and the batch's rows in order; gives each row's windows before
it, and the new states. Called by `serve.features.windows` once per micro-batch; twin: `kernels.reference_windows`.

A window is a run of time buckets (Datar et al. 2002 approximate theirs; these are exact, because the bucket grid is the
definition). A state is an int64 array: the header (layout version, newest event second, number of entries per level)
and per level its non-empty buckets in time order, two words each: `bucket << 32 | count`, sum in ten-thousandths. The
last level counts what labels called fraud. A customer's state ends with a profile (`kernels.profiles`).

Risk is the share of fraud in a window that ends `RISK_DELAY_S` ago: by then, labels have arrived.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels import profiles

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BUCKET_S = (60, 300, 3_600, 21_600)
WINDOW_S = (3_600, 86_400, 604_800, 2_592_000)
LATENESS_S = 86_400
RISK_DELAY_S = 604_800
RISK_WINDOW_S = (86_400, 604_800, 2_592_000)
NUM_LEVELS = len(BUCKET_S)
NUM_RISKS = len(RISK_WINDOW_S)
WINDOW_BUCKETS = tuple(window // bucket for window, bucket in zip(WINDOW_S, BUCKET_S, strict=True))
RISK_BUCKETS = tuple(window // BUCKET_S[-1] for window in RISK_WINDOW_S)
RETAINED_S = (*WINDOW_S[:-1], RISK_DELAY_S + RISK_WINDOW_S[-1])
"""What has to be known before an event's second, per level."""
# What a window needs when its event is as late as may be: all divide evenly, so the bound is exact.
RETAINED_BUCKETS = tuple((span + LATENESS_S) // bucket for span, bucket in zip(RETAINED_S, BUCKET_S, strict=True))

NUM_TOTALS = 2 * NUM_LEVELS + 2 * NUM_RISKS
"""Columns of a row's totals: the count per level, the sum per level, and per risk window the count, then the frauds."""

WORD_BYTES = 8
LAYOUT_VERSION = 2
HEADER_WORDS = 3 + NUM_LEVELS
MAX_EVENT_S = 1 << 36  # exclusive; the year 4147, and the finest bucket's index still fits in 31 bits
MAX_AMOUNT_E4 = 10**13  # 1e9 in ten-thousandths: an int64 sum holds 900 000 of them

_LAST, _FRAUDS = NUM_LEVELS - 1, NUM_LEVELS  # levels of the coarsest buckets: of all events, and of the frauds
_UNSEEN = -1  # "newest event" of a key without a state
_COUNT_MASK = (1 << 32) - 1
_RISK = 2 * NUM_LEVELS
_RISK_DELAY = RISK_DELAY_S // BUCKET_S[_LAST]
_HOUR_S, _DAY_S = 3_600, 86_400
_NIGHT_ENDS_HOUR = 6


@njit(nogil=True, cache=True)
def advance(
    states: Ints,
    num_bytes: Ints,
    key_of_row: npt.NDArray[np.int32],
    event_s: Ints,
    amount_e4: Ints,
    num_profiled: int,
    terminal: Ints,
    place: Floats,
) -> tuple[Ints, Floats, Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_], Ints, Ints]:
    """Reads, then enters, every row in order: row n sees its key's state and the rows before n.

    `states` is the keys' states end to end and `num_bytes` their sizes, whole words (0: unknown key). The first
    `num_profiled` keys are customers, whose rows have a `terminal` below 2**32 and a `place` [n, 2], latitude and
    longitude or NaN. Gives per row: totals int64 [n, NUM_TOTALS], seconds since the newest event (NaN: unknown key),
    profile float64 [n, profiles.NUM_COLUMNS] (NaN: no customer), is_late; per key: is_damaged; the new states end to
    end, and the bytes where each key's begins, with the end (k + 1). Raises ValueError for a row out of range.
    """
    num_keys, num_rows = num_bytes.size, event_s.size
    rows, starts = _group_rows(key_of_row, event_s, amount_e4, num_keys)
    totals, seen = np.zeros((num_rows, NUM_TOTALS), np.int64), np.full((num_rows, profiles.NUM_COLUMNS), np.nan)
    since_last_s = np.full(num_rows, np.nan)
    is_late, is_damaged = np.zeros(num_rows, np.bool_), np.zeros(num_keys, np.bool_)
    room = num_keys * (HEADER_WORDS + profiles.HEAD_WORDS) + num_rows * (2 * NUM_LEVELS + 1)
    new_states = np.empty(states.size + room, np.int64)
    new_bounds = np.zeros(num_keys + 1, np.int64)
    entries = np.empty((NUM_LEVELS + 1, _most_entries(num_bytes, starts), 2), np.int64)
    sizes, profile = np.zeros(NUM_LEVELS + 1, np.int64), np.zeros(profiles.MAX_WORDS, np.int64)
    begin = written = 0
    for key, is_profiled in enumerate(np.arange(num_keys) < num_profiled):
        state = states[begin : begin + num_bytes[key] // WORD_BYTES]
        begin += state.size
        newest_s, size = _load_key(state, is_profiled, entries, sizes, profile)
        is_damaged[key] = newest_s == _UNSEEN and state.size > 0
        for row in rows[starts[key] : starts[key + 1]]:
            now_s = event_s[row]
            if newest_s != _UNSEEN:
                since_last_s[row] = max(0, now_s - newest_s)
                _read(entries, sizes, newest_s, now_s, totals[row])
            if is_profiled:
                profiles.see(profile, size, newest_s, now_s, terminal[row], place[row, 0], place[row, 1], seen[row])
            is_late[row] = newest_s - now_s > LATENESS_S
            if not is_late[row]:
                newest_s = max(newest_s, now_s)
                _enter(entries, sizes, now_s, amount_e4[row])
                if is_profiled:
                    size = profiles.enter(profile, size, now_s, terminal[row], place[row, 0], place[row, 1])
        written += _save_key(entries, sizes, newest_s, profile[:size], new_states[written:])
        new_bounds[key + 1] = written * WORD_BYTES
    return totals, since_last_s, seen, is_late, is_damaged, new_states[:written], new_bounds


@njit(nogil=True, cache=True)
def _load_key(state: Ints, is_profiled: bool, entries: Ints, sizes: Ints, profile: Ints) -> tuple[int, int]:
    """Unpacks the windows and, of a customer, the profile behind them; gives the newest event and the profile's words."""
    newest_s = _load(state, is_profiled, entries, sizes)
    behind = state[_words(state) if newest_s != _UNSEEN else state.size :]
    return newest_s, profiles.load(behind, profile) if is_profiled else 0


@njit(nogil=True, cache=True)
def _save_key(entries: Ints, sizes: Ints, newest_s: int, profile: Ints, out: Ints) -> int:
    """Packs both into `out` and gives the words written; none for a key that was never seen."""
    if newest_s == _UNSEEN:
        return 0
    words = _save(entries, sizes, newest_s, out)
    return int(words + profiles.save(profile, profile.size, newest_s, out[words:]))


@njit(nogil=True, cache=True)
def mark(state: Ints, event_s: int, by: int) -> Ints:
    """A terminal's state with `by` more frauds, 1 or -1, at the second of an event that was entered; the same where it
    is damaged, or the event no longer retained.
    """
    sizes = np.zeros(NUM_LEVELS + 1, np.int64)
    entries = np.empty((NUM_LEVELS + 1, state.size // 2 + 1, 2), np.int64)
    newest_s = _load(state, False, entries, sizes)
    bucket, newest = event_s // BUCKET_S[_LAST], newest_s // BUCKET_S[_LAST]
    if newest_s == _UNSEEN or not newest - RETAINED_BUCKETS[_LAST] < bucket <= newest:
        return state
    _add(entries, sizes, _FRAUDS, bucket, by, 0)
    marked = np.empty(state.size + 2, np.int64)
    return marked[: _save(entries, sizes, newest_s, marked)]


@njit(nogil=True, cache=True)
def assemble(
    amount_e4: Ints,
    event_s: Ints,
    customer: tuple[Ints, Floats, Floats],
    terminal: tuple[Ints, Floats, Floats],
    out: npt.NDArray[np.float32],
) -> None:
    """Writes the model's rows into `out`, float32 [n, F]; the columns are `serve.features.windows.FEATURES`.

    `customer` and `terminal` are totals, seconds since the newest event and profile, as `advance` gives them. What is
    not known is NaN.
    """
    customer_windows, customer_since_s, profile = customer
    terminal_windows, terminal_since_s, _ = terminal
    for row in range(amount_e4.size):
        amount = amount_e4[row] / 1e4
        hour = event_s[row] % _DAY_S // _HOUR_S
        out[row, 0] = amount
        out[row, 1] = hour
        out[row, 2] = hour < _NIGHT_ENDS_HOUR
        out[row, 3] = (event_s[row] // _DAY_S + 3) % 7 >= 5  # the epoch was a Thursday
        for level in range(NUM_LEVELS):
            out[row, 4 + level] = customer_windows[row, level]
            out[row, 8 + level] = _average(customer_windows[row], level)
            out[row, 12 + level] = terminal_windows[row, level]
            out[row, 16 + level] = _average(terminal_windows[row], level)
        out[row, 20] = _ratio(amount, _average(customer_windows[row], 2))
        out[row, 21] = _ratio(amount, _average(customer_windows[row], 3))
        out[row, 22] = _ratio(amount, _average(terminal_windows[row], 3))
        out[row, 23] = customer_since_s[row]
        out[row, 24] = terminal_since_s[row]
        for risk in range(NUM_RISKS):
            count, frauds = terminal_windows[row, _RISK + risk], terminal_windows[row, _RISK + NUM_RISKS + risk]
            out[row, 25 + risk] = frauds / count if count > 0 else np.nan
            out[row, 28 + risk] = frauds
        out[row, 31] = profile[row, profiles.TERMINALS_7D]
        out[row, 32] = profile[row, profiles.IS_NEW_TERMINAL]


@njit(nogil=True, cache=True)
def _group_rows(key_of_row: npt.NDArray[np.int32], event_s: Ints, amount_e4: Ints, num_keys: int) -> tuple[Ints, Ints]:
    """Counting sort: row numbers by key, batch order kept within a key, and where each key's rows start."""
    starts = np.zeros(num_keys + 1, np.int64)
    for row in range(key_of_row.size):
        if not 0 <= key_of_row[row] < num_keys:
            raise ValueError("key_of_row names a key that has no state")
        if not 0 <= event_s[row] < MAX_EVENT_S:
            raise ValueError("event_s is out of range; allowed 0 to 2**36 - 1")
        if not -MAX_AMOUNT_E4 <= amount_e4[row] <= MAX_AMOUNT_E4:
            raise ValueError("amount_e4 is out of range; allowed -10**13 to 10**13")
        starts[key_of_row[row] + 1] += 1
    starts = np.cumsum(starts)
    rows = np.empty(key_of_row.size, np.int64)
    nexts = starts.copy()
    for row in range(key_of_row.size):
        rows[nexts[key_of_row[row]]] = row
        nexts[key_of_row[row]] += 1
    return rows, starts


@njit(nogil=True, cache=True)
def _most_entries(num_bytes: Ints, starts: Ints) -> int:
    """A bound, over the keys, on one level's entries while the key's rows are entered; dropping waits for `_save`."""
    most = 0
    for key in range(num_bytes.size):
        most = max(most, num_bytes[key] // (2 * WORD_BYTES) + starts[key + 1] - starts[key])
    return most


@njit(nogil=True, cache=True)
def _load(state: Ints, is_profiled: bool, entries: Ints, sizes: Ints) -> int:
    """Unpacks a state into `entries` and gives its newest event; an empty or damaged one leaves nothing."""
    sizes[:] = 0
    if not _is_sound(state, is_profiled):
        return _UNSEEN
    begin = HEADER_WORDS
    for level in range(NUM_LEVELS + 1):
        sizes[level] = state[2 + level]
        for i in range(sizes[level]):
            entries[level, i, 0] = state[begin + 2 * i]
            entries[level, i, 1] = state[begin + 2 * i + 1]
        begin += 2 * sizes[level]
    return int(state[1])


@njit(nogil=True, cache=True)
def _words(state: Ints) -> int:
    """Of the windows in a state whose header is sound; the profile follows."""
    words = HEADER_WORDS
    for level in range(NUM_LEVELS + 1):
        words += 2 * state[2 + level]
    return words


@njit(nogil=True, cache=True)
def _is_sound(state: Ints, is_profiled: bool) -> bool:
    """Whether every read stays inside the state and its buckets rise, without doubles, up to its newest event's."""
    if state.size < HEADER_WORDS or state[0] != LAYOUT_VERSION or not 0 <= state[1] < MAX_EVENT_S:
        return False
    for level in range(NUM_LEVELS + 1):
        fewest = 1 if level < NUM_LEVELS else 0
        if not fewest <= state[2 + level] <= RETAINED_BUCKETS[min(level, _LAST)]:
            return False
    words = _words(state)
    if words > state.size or (words < state.size and not is_profiled):
        return False
    begin = HEADER_WORDS
    for level in range(NUM_LEVELS + 1):
        like = min(level, _LAST)
        newest = state[1] // BUCKET_S[like]
        last = newest - RETAINED_BUCKETS[like]
        for i in range(begin, begin + 2 * state[2 + level], 2):
            if state[i] >> 32 <= last or state[i] & _COUNT_MASK == 0:
                return False
            last = state[i] >> 32
        if last > newest or (level < NUM_LEVELS and last != newest):
            return False
        begin += 2 * state[2 + level]
    return True


@njit(nogil=True, cache=True)
def _read(entries: Ints, sizes: Ints, newest_s: int, now_s: int, totals: Ints) -> None:
    """Counts and sums of the buckets in (current - window, current] that are retained; and of those a delay ago."""
    for level in range(NUM_LEVELS):
        current = now_s // BUCKET_S[level]
        # Within the lateness the window's own edge is the higher; beyond it, only what is retained may count.
        before = max(current - WINDOW_BUCKETS[level], newest_s // BUCKET_S[level] - RETAINED_BUCKETS[level])
        count, total = 0, 0
        for i in range(sizes[level] - 1, -1, -1):
            bucket = entries[level, i, 0] >> 32
            if bucket <= before:
                break
            if bucket <= current:
                count += entries[level, i, 0] & _COUNT_MASK
                total += entries[level, i, 1]
        totals[level] = count
        totals[NUM_LEVELS + level] = total
    for part in range(2):
        _read_delayed(
            entries[_LAST + part, : sizes[_LAST + part], 0], newest_s, now_s, totals[_RISK + part * NUM_RISKS :]
        )


@njit(nogil=True, cache=True)
def _read_delayed(packed: Ints, newest_s: int, now_s: int, counts: Ints) -> None:
    """Counts of the buckets in (end - window, end] for every risk window, where `end` is the delay ago."""
    end = now_s // BUCKET_S[_LAST] - _RISK_DELAY
    oldest = max(end - RISK_BUCKETS[NUM_RISKS - 1], newest_s // BUCKET_S[_LAST] - RETAINED_BUCKETS[_LAST])
    for i in range(packed.size):
        bucket = packed[i] >> 32
        if bucket > end:
            break
        if bucket > oldest:
            for risk in range(NUM_RISKS):
                if bucket > end - RISK_BUCKETS[risk]:
                    counts[risk] += packed[i] & _COUNT_MASK


@njit(nogil=True, cache=True)
def _enter(entries: Ints, sizes: Ints, now_s: int, amount_e4: int) -> None:
    """Adds an event to its bucket of every level."""
    for level in range(NUM_LEVELS):
        _add(entries, sizes, level, now_s // BUCKET_S[level], 1, amount_e4)


@njit(nogil=True, cache=True)
def _add(entries: Ints, sizes: Ints, level: int, bucket: int, count: int, amount_e4: int) -> None:
    """Adds to a bucket, making it where it is new and leaving none that counts nothing."""
    i = sizes[level]
    while i > 0 and entries[level, i - 1, 0] >> 32 > bucket:
        i -= 1
    if i > 0 and entries[level, i - 1, 0] >> 32 == bucket:
        if (entries[level, i - 1, 0] & _COUNT_MASK) + count > 0:
            entries[level, i - 1, 0] += count
            entries[level, i - 1, 1] += amount_e4
            return
        for j in range(i, sizes[level]):
            entries[level, j - 1, 0] = entries[level, j, 0]
            entries[level, j - 1, 1] = entries[level, j, 1]
        sizes[level] -= 1
    elif count > 0:
        for j in range(sizes[level], i, -1):
            entries[level, j, 0] = entries[level, j - 1, 0]
            entries[level, j, 1] = entries[level, j - 1, 1]
        entries[level, i, 0] = bucket << 32 | count
        entries[level, i, 1] = amount_e4
        sizes[level] += 1


@njit(nogil=True, cache=True)
def _save(entries: Ints, sizes: Ints, newest_s: int, out: Ints) -> int:
    """Packs the retained entries into `out` and gives the words written."""
    out[0], out[1] = LAYOUT_VERSION, newest_s
    words = HEADER_WORDS
    for level in range(NUM_LEVELS + 1):
        like = min(level, _LAST)
        before = newest_s // BUCKET_S[like] - RETAINED_BUCKETS[like]
        begin = words
        for i in range(sizes[level]):
            if entries[level, i, 0] >> 32 > before:
                out[words] = entries[level, i, 0]
                out[words + 1] = entries[level, i, 1]
                words += 2
        out[2 + level] = (words - begin) // 2
    return words


@njit(nogil=True, cache=True)
def _average(windows: Ints, level: int) -> float:
    """Average amount of a window, in currency units; NaN for an empty one."""
    count = windows[level]
    return windows[NUM_LEVELS + level] / count / 1e4 if count > 0 else np.nan


@njit(nogil=True, cache=True)
def _ratio(amount: float, average: float) -> float:
    """How many times the average; NaN where there is none to compare with."""
    return amount / average if average > 0 else np.nan
