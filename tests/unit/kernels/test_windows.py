"""The window kernels against their plain twin: streams out of order and late, hot keys, damaged states."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_windows as twin
from kernels import windows as kernel
from kernels.window_history import window_history

DAY_S = 86_400
ANCHOR_S = 1_600_041_600  # a midnight: every bucket begins here
MOST_ENTRIES = sum(kernel.RETAINED_BUCKETS)

# Seconds that meet bucket edges, each other, and the lateness bound, as well as wide gaps.
offsets_s = st.one_of(
    st.integers(0, 90),
    st.integers(0, 3 * DAY_S),
    st.integers(0, 45 * DAY_S),
    st.builds(
        lambda unit, n, by: max(0, unit * n + by),
        st.sampled_from([*kernel.BUCKET_S, *kernel.WINDOW_S]),
        st.integers(0, 30),
        st.sampled_from([-1, 0, 1]),
    ),
)
amounts_e4 = st.one_of(
    st.integers(0, 5_000_000), st.integers(-5_000_000, 5_000_000), st.just(kernel.MAX_AMOUNT_E4), st.just(0)
)
events = st.tuples(st.integers(0, 3), offsets_s, amounts_e4)
streams = st.lists(st.lists(events, max_size=12), max_size=8)
anchors = st.sampled_from([0, ANCHOR_S])


def advance(states, key_of_row, event_s, amount_e4):
    """The kernel on lists; new states as a list of arrays."""
    blobs = [np.asarray(state, np.int64) for state in states]
    *rows, new, bounds = kernel.advance(
        np.concatenate([np.empty(0, np.int64), *blobs]),
        np.array([blob.nbytes for blob in blobs], np.int64),
        np.array(key_of_row, np.int32),
        np.array(event_s, np.int64),
        np.array(amount_e4, np.int64),
    )
    ends = bounds // kernel.WORD_BYTES
    return (*rows, [new[begin:end] for begin, end in pairwise(ends)])


def state_of(event_s, amount_e4=None):
    """One key's state after the events."""
    amounts = [10_000] * len(event_s) if amount_e4 is None else amount_e4
    return advance([[]], [0] * len(event_s), event_s, amounts)[4][0]


def assert_same(windows, since_last_s, is_late, seen):
    assert windows.tolist() == [*seen.counts, *seen.sums]
    assert since_last_s == seen.since_last_s or (math.isnan(since_last_s) and math.isnan(seen.since_last_s))
    assert bool(is_late) is seen.is_late


@settings(deadline=None, max_examples=200)
@given(streams, anchors)
def test_kernel_sees_what_the_twin_sees_in_every_batch(stream, anchor_s):
    states = [np.empty(0, np.int64)] * 4
    histories = [twin.KeyHistory() for _ in range(4)]
    for batch in stream:
        keys = [key for key, _, _ in batch]
        times = [anchor_s + offset for _, offset, _ in batch]
        amounts = [amount for _, _, amount in batch]
        windows, since_last_s, is_late, is_damaged, states = advance(states, keys, times, amounts)
        assert not is_damaged.any()
        for row, (key, now_s, amount) in enumerate(zip(keys, times, amounts, strict=True)):
            assert_same(windows[row], since_last_s[row], is_late[row], histories[key].see(now_s, amount))
        assert all(state.size <= kernel.HEADER_WORDS + 2 * MOST_ENTRIES for state in states)


@settings(deadline=None, max_examples=200)
@given(st.lists(events, max_size=60), anchors)
def test_history_kernel_sees_what_the_twin_sees(stream, anchor_s):
    keys = np.array([key for key, _, _ in stream], np.int64)
    times = np.array([anchor_s + offset for _, offset, _ in stream], np.int64)
    amounts = np.array([amount for _, _, amount in stream], np.int64)
    starts = np.searchsorted(np.sort(keys), [0, 1, 2, 3, 4])
    starts = np.unique(starts)  # the history has no key without events
    totals, since_last_s, is_late = window_history(np.argsort(keys, kind="stable"), starts, times, amounts)
    histories = [twin.KeyHistory() for _ in range(4)]
    for row, key in enumerate(keys):
        seen = histories[key].see(int(times[row]), int(amounts[row]))
        assert_same(totals[row], since_last_s[row], is_late[row], seen)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, DAY_S), amounts_e4), min_size=1, max_size=30), st.randoms(use_true_random=False)
)
def test_state_does_not_depend_on_the_order_of_arrivals_within_a_day(arrivals, random):
    shuffled = random.sample(arrivals, len(arrivals))
    first = state_of([ANCHOR_S + s for s, _ in arrivals], [a for _, a in arrivals])
    second = state_of([ANCHOR_S + s for s, _ in shuffled], [a for _, a in shuffled])
    assert first.tobytes() == second.tobytes()


def hot_key_events():
    """Fills every level to its bound: 6-hourly for 31 days, hourly for 8, 5-minutely for 2, each minute for 25 h."""
    end_s = ANCHOR_S + 40 * DAY_S
    spans = zip(kernel.WINDOW_S, kernel.BUCKET_S, strict=True)
    times = [range(end_s - window - DAY_S, end_s, bucket) for window, bucket in spans]
    return sorted(second for span in times for second in span)


def test_hot_key_stays_within_the_bound_and_exact():
    past = hot_key_events()
    state = state_of(past)
    assert state[2:6].tolist() == list(kernel.RETAINED_BUCKETS)
    newest_s = past[-1]
    probes = [newest_s, newest_s - DAY_S, newest_s + 61, newest_s + 61 - DAY_S - 1, newest_s + 3600, newest_s + 7200]
    windows, since_last_s, is_late, _, new = advance([state], [0] * len(probes), probes, [77] * len(probes))
    history = twin.KeyHistory([(second, 10_000) for second in past])
    for row, now_s in enumerate(probes):
        assert_same(windows[row], since_last_s[row], is_late[row], history.see(now_s, 77))
    assert is_late.tolist() == [False, False, False, True, False, False]
    assert (new[0][2:6] <= kernel.RETAINED_BUCKETS).all()


def test_event_a_day_late_is_entered_and_one_second_later_is_not():
    state = state_of([ANCHOR_S + 10 * DAY_S])
    for second, is_expected_late in [(ANCHOR_S + 9 * DAY_S, False), (ANCHOR_S + 9 * DAY_S - 1, True)]:
        _, since_last_s, is_late, _, (after,) = advance([state], [0], [second], [5])
        assert is_late[0] == is_expected_late
        assert since_last_s[0] == 0
        assert (after.tobytes() == state.tobytes()) == is_expected_late


def test_key_without_rows_keeps_its_state_and_unknown_key_without_rows_gets_none():
    state = state_of([ANCHOR_S, ANCHOR_S + 5])
    after = advance([state, []], [], [], [])[4]
    assert after[0].tobytes() == state.tobytes()
    assert after[1].size == 0


def damaged_states():
    """Each a sound state with one thing wrong."""
    sound = state_of([ANCHOR_S - DAY_S, ANCHOR_S - 7 * 3600, ANCHOR_S])

    def changed(word, value):
        state = sound.copy()
        state[word] = value
        return state

    def swapped(a, b):
        state = sound.copy()
        state[[a, b]] = state[[b, a]]
        return state

    return {
        "version": changed(0, kernel.LAYOUT_VERSION + 1),
        "negative newest": changed(1, -1),
        "newest after its bucket": changed(1, ANCHOR_S + DAY_S),
        "no entries": changed(2, 0),
        "negative entries": changed(2, -3),
        "entries past the end": changed(2, 1 << 62),
        "entries over the bound": changed(5, kernel.RETAINED_BUCKETS[3] + 1),
        "unsorted": swapped(6, 8),
        "doubled bucket": changed(8, sound[6]),
        "bucket too old": changed(6, 1 << 32 | 1),
        "bucket without events": changed(6, sound[6] & ~0xFFFFFFFF),
        "bucket after the newest": changed(10, sound[10] + (1 << 32)),
        "cut": sound[:-2],
        "header only": sound[:6],
        "one word": sound[:1],
        "longer": np.append(sound, [1, 1]),
        "zeros": np.zeros_like(sound),
        "ones": np.full_like(sound, -1),
    }


@pytest.mark.parametrize("wrong", damaged_states())
def test_damaged_state_is_reported_and_counts_as_unknown_while_its_neighbours_are_read(wrong):
    sound = state_of([ANCHOR_S])
    windows, since_last_s, _, is_damaged, new = advance(
        [sound, damaged_states()[wrong], sound], [0, 1, 2, 1], [ANCHOR_S + 60] * 4, [5] * 4
    )
    assert is_damaged.tolist() == [False, True, False]
    assert windows[1].tolist() == [0] * 8
    assert math.isnan(since_last_s[1])
    assert windows[0].tolist() == windows[2].tolist() == [1] * 4 + [10_000] * 4
    assert windows[3].tolist() == [1] * 4 + [5] * 4
    assert new[1].tobytes() == state_of([ANCHOR_S + 60] * 2, [5] * 2).tobytes()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_damage_either_is_reported_or_leaves_a_state_that_works(data):
    state = state_of(hot_key_events()[-50:]).copy()
    for _ in range(data.draw(st.integers(1, 3))):
        word = data.draw(st.integers(0, state.size - 1))
        state[word] = data.draw(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 3000))
    state = state[: data.draw(st.integers(0, state.size))]
    rows = data.draw(st.integers(0, 20))
    times = [ANCHOR_S + 40 * DAY_S + 600 * i for i in range(rows)]
    _, _, _, is_damaged, new = advance([state], [0] * rows, times, [1] * rows)
    if is_damaged[0]:
        assert new[0].tobytes() == state_of(times, [1] * rows).tobytes() if rows else new[0].size == 0
    assert not advance(new, [], [], [])[3].any()


@pytest.mark.parametrize(
    ("key", "second", "amount", "names"),
    [
        (1, 0, 0, "key_of_row"),
        (-1, 0, 0, "key_of_row"),
        (0, -1, 0, "event_s"),
        (0, kernel.MAX_EVENT_S, 0, "event_s"),
        (0, 0, kernel.MAX_AMOUNT_E4 + 1, "amount_e4"),
        (0, 0, -kernel.MAX_AMOUNT_E4 - 1, "amount_e4"),
    ],
)
def test_row_out_of_range_is_refused_by_name(key, second, amount, names):
    with pytest.raises(ValueError, match=names):
        advance([[]], [key], [second], [amount])


def test_extreme_but_allowed_rows_are_exact():
    last = kernel.MAX_EVENT_S - 1
    windows, _, _, _, new = advance([[]], [0] * 3, [last] * 3, [kernel.MAX_AMOUNT_E4] * 3)
    assert windows[2].tolist() == [2] * 4 + [2 * kernel.MAX_AMOUNT_E4] * 4
    assert not advance(new, [], [], [])[3].any()


seen = st.builds(
    lambda counts, sums, since: twin.Seen(
        tuple(counts), tuple(s if n else 0 for n, s in zip(counts, sums, strict=True)), since, False
    ),
    st.lists(st.integers(0, 5000), min_size=4, max_size=4),
    st.lists(amounts_e4, min_size=4, max_size=4),
    st.just(math.nan) | st.integers(0, 10**9).map(float),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(amounts_e4, st.integers(0, 1 << 35), seen, seen), max_size=5))
def test_assembled_rows_are_the_twins(transactions):
    def windows(side):
        totals = np.array([[*t[side].counts, *t[side].sums] for t in transactions], np.int64).reshape(-1, 8)
        return totals, np.array([t[side].since_last_s for t in transactions], np.float64)

    out = np.empty((len(transactions), 25), np.float32)
    amount_e4 = np.array([t[0] for t in transactions], np.int64)
    event_s = np.array([t[1] for t in transactions], np.int64)
    kernel.assemble(amount_e4, event_s, windows(2), windows(3), out)
    expected = np.array([twin.row(*t) for t in transactions], np.float64).reshape(-1, 25).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
