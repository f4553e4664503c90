"""The window kernels against their plain twin: streams out of order and late, hot keys, damaged states."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import profiles
from kernels import reference_windows as twin
from kernels import windows as kernel
from kernels.window_history import window_history
from tests.unit.kernels.window_cases import (
    ANCHOR_S,
    DAY_S,
    advance,
    amounts_e4,
    anchors,
    assert_same,
    damage,
    history_twin,
    hot_key_events,
    offsets_s,
    state_of,
    totals_of,
)

MOST_ENTRIES = sum(kernel.RETAINED_BUCKETS)
LEVELS = slice(2, 2 + kernel.NUM_LEVELS)
LAST = kernel.NUM_LEVELS - 1
NUM_FEATURES = 33
FIRST_ENTRY = kernel.HEADER_WORDS

events = st.tuples(st.integers(0, 3), offsets_s, amounts_e4)
streams = st.lists(st.lists(events, max_size=12), max_size=8)


@settings(deadline=None, max_examples=200)
@given(streams, anchors)
def test_kernel_sees_what_the_twin_sees_in_every_batch(stream, anchor_s):
    states = [np.empty(0, np.int64)] * 4
    histories = [twin.KeyHistory() for _ in range(4)]
    for batch in stream:
        keys = [key for key, _, _ in batch]
        times = [anchor_s + offset for _, offset, _ in batch]
        amounts = [amount for _, _, amount in batch]
        seen = advance(states, keys, times, amounts)
        states = seen.states
        assert not seen.is_damaged.any()
        for row, (key, now_s, amount) in enumerate(zip(keys, times, amounts, strict=True)):
            expected = histories[key].see(now_s, amount)
            assert_same(seen.totals[row], seen.since_last_s[row], seen.is_late[row], expected)
        assert all(state.size <= kernel.HEADER_WORDS + 2 * MOST_ENTRIES for state in states)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), offsets_s, amounts_e4, st.booleans()), max_size=60), anchors)
def test_history_kernel_sees_what_the_twin_sees(stream, anchor_s):
    keys = np.array([key for key, *_ in stream], np.int64)
    times = np.array([anchor_s + offset for _, offset, *_ in stream], np.int64)
    amounts = np.array([amount for _, _, amount, _ in stream], np.int64)
    is_fraud = np.array([is_fraud for *_, is_fraud in stream], np.bool_)
    starts = np.searchsorted(np.sort(keys), [0, 1, 2, 3, 4])
    starts = np.unique(starts)  # the history has no key without events
    totals, since_last_s, is_late = window_history(np.argsort(keys, kind="stable"), starts, times, amounts, is_fraud)
    histories = [twin.KeyHistory() for _ in range(4)]
    for row, key in enumerate(keys):
        seen = histories[key].see(int(times[row]), int(amounts[row]))
        assert_same(totals[row], since_last_s[row], is_late[row], seen)
        if is_fraud[row] and not seen.is_late:
            histories[key].mark(-1, 1)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, DAY_S), amounts_e4), min_size=1, max_size=30), st.randoms(use_true_random=False)
)
def test_state_does_not_depend_on_the_order_of_arrivals_within_a_day(arrivals, random):
    shuffled = random.sample(arrivals, len(arrivals))
    first = state_of([ANCHOR_S + s for s, _ in arrivals], [a for _, a in arrivals])
    second = state_of([ANCHOR_S + s for s, _ in shuffled], [a for _, a in shuffled])
    assert first.tobytes() == second.tobytes()


def test_hot_key_stays_within_the_bound_and_exact():
    past = hot_key_events()
    state = state_of(past)
    assert state[LEVELS].tolist() == list(kernel.RETAINED_BUCKETS)
    newest_s = past[-1]
    probes = [newest_s, newest_s - DAY_S, newest_s + 61, newest_s + 61 - DAY_S - 1, newest_s + 3600, newest_s + 7200]
    seen = advance([state], [0] * len(probes), probes, [77] * len(probes))
    history = history_twin(past)
    for row, now_s in enumerate(probes):
        assert_same(seen.totals[row], seen.since_last_s[row], seen.is_late[row], history.see(now_s, 77))
    assert seen.is_late.tolist() == [False, False, False, True, False, False]
    assert (seen.states[0][LEVELS] <= kernel.RETAINED_BUCKETS).all()


def test_event_a_day_late_is_entered_and_one_second_later_is_not():
    state = state_of([ANCHOR_S + 10 * DAY_S])
    for second, is_expected_late in [(ANCHOR_S + 9 * DAY_S, False), (ANCHOR_S + 9 * DAY_S - 1, True)]:
        seen = advance([state], [0], [second], [5])
        assert seen.is_late[0] == is_expected_late
        assert seen.since_last_s[0] == 0
        assert (seen.states[0].tobytes() == state.tobytes()) == is_expected_late


def test_key_without_rows_keeps_its_state_and_unknown_key_without_rows_gets_none():
    state = state_of([ANCHOR_S, ANCHOR_S + 5])
    after = advance([state, []], [], [], []).states
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

    first, frauds = FIRST_ENTRY, 2 + kernel.NUM_LEVELS
    return {
        "version": changed(0, kernel.LAYOUT_VERSION + 1),
        "negative newest": changed(1, -1),
        "newest after its bucket": changed(1, ANCHOR_S + DAY_S),
        "no entries": changed(2, 0),
        "negative entries": changed(2, -3),
        "entries past the end": changed(2, 1 << 62),
        "entries over the bound": changed(2 + LAST, kernel.RETAINED_BUCKETS[LAST] + 1),
        "frauds past the end": changed(frauds, 2),
        "negative frauds": changed(frauds, -1),
        "frauds over the bound": changed(frauds, kernel.RETAINED_BUCKETS[LAST] + 1),
        "fraud too old": marked(sound, 1 << 32 | 1),
        "fraud after the newest": marked(sound, (ANCHOR_S // kernel.BUCKET_S[LAST] + 1) << 32 | 1),
        "bucket without frauds": marked(sound, ANCHOR_S // kernel.BUCKET_S[LAST] << 32),
        "unsorted": swapped(first, first + 2),
        "doubled bucket": changed(first + 2, sound[first]),
        "bucket too old": changed(first, 1 << 32 | 1),
        "bucket without events": changed(first, sound[first] & ~0xFFFFFFFF),
        "bucket after the newest": changed(first + 4, sound[first + 4] + (1 << 32)),
        "cut": sound[:-2],
        "header only": sound[:FIRST_ENTRY],
        "one word": sound[:1],
        "longer": np.append(sound, [1, 1]),
        "zeros": np.zeros_like(sound),
        "ones": np.full_like(sound, -1),
    }


def marked(sound, packed):
    """With one bucket of frauds, as packed."""
    state = np.append(sound, [packed, 0])
    state[2 + kernel.NUM_LEVELS] = 1
    return state


@pytest.mark.parametrize("wrong", damaged_states())
def test_damaged_state_is_reported_and_counts_as_unknown_while_its_neighbours_are_read(wrong):
    sound = state_of([ANCHOR_S])
    seen = advance([sound, damaged_states()[wrong], sound], [0, 1, 2, 1], [ANCHOR_S + 60] * 4, [5] * 4)
    assert seen.is_damaged.tolist() == [False, True, False]
    assert not seen.totals[1].any()
    assert math.isnan(seen.since_last_s[1])
    assert seen.totals[0].tolist() == seen.totals[2].tolist() == totals_of([1] * 4, [10_000] * 4)
    assert seen.totals[3].tolist() == totals_of([1] * 4, [5] * 4)
    assert seen.states[1].tobytes() == state_of([ANCHOR_S + 60] * 2, [5] * 2).tobytes()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_damage_either_is_reported_or_leaves_a_state_that_works(data):
    past = hot_key_events()[-50:]
    state = damage(kernel.mark(state_of(past), past[3], 1), data)
    rows = data.draw(st.integers(0, 20))
    times = [ANCHOR_S + 40 * DAY_S + 600 * i for i in range(rows)]
    seen = advance([state], [0] * rows, times, [1] * rows)
    (new,) = seen.states
    if seen.is_damaged[0]:
        assert new.tobytes() == state_of(times, [1] * rows).tobytes() if rows else new.size == 0
    assert not advance([new], [], [], []).is_damaged.any()


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
    seen = advance([[]], [0] * 3, [last] * 3, [kernel.MAX_AMOUNT_E4] * 3)
    assert seen.totals[2].tolist() == totals_of([2] * 4, [2 * kernel.MAX_AMOUNT_E4] * 4)
    assert not advance(seen.states, [], [], []).is_damaged.any()


def seen_of(counts, sums, risks, since_last_s):
    return twin.Seen(
        counts=tuple(counts),
        sums=tuple(total if n else 0 for n, total in zip(counts, sums, strict=True)),
        risk_counts=tuple(count for count, _ in risks),
        frauds=tuple(min(risk) for risk in risks),
        since_last_s=since_last_s,
        is_late=False,
    )


seen = st.builds(
    seen_of,
    st.lists(st.integers(0, 5000), min_size=4, max_size=4),
    st.lists(amounts_e4, min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=3, max_size=3),
    st.just(math.nan) | st.integers(0, 10**9).map(float),
)
seen_profile = st.builds(twin.Profile, st.integers(0, 128), st.booleans(), st.just(math.nan), st.just(math.nan))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(amounts_e4, st.integers(0, 1 << 35), seen, seen, seen_profile), max_size=5))
def test_assembled_rows_are_the_twins(transactions):
    n = len(transactions)

    def windows(side):
        seen = [t[side] for t in transactions]
        totals = [totals_of(one.counts, one.sums, one.risk_counts, one.frauds) for one in seen]
        profile = [
            [t[4].num_terminals_7d, t[4].is_new_terminal, t[4].km_from_home, t[4].km_per_hour] for t in transactions
        ]
        return (
            np.array(totals, np.int64).reshape(n, kernel.NUM_TOTALS),
            np.array([one.since_last_s for one in seen], np.float64),
            np.array(profile, np.float64).reshape(n, profiles.NUM_COLUMNS),
        )

    out = np.empty((n, NUM_FEATURES), np.float32)
    amount_e4 = np.array([t[0] for t in transactions], np.int64)
    event_s = np.array([t[1] for t in transactions], np.int64)
    kernel.assemble(amount_e4, event_s, windows(2), windows(3), out)
    expected = np.array([twin.row(*t) for t in transactions], np.float64).reshape(n, NUM_FEATURES).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
