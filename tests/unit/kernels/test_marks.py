"""Frauds and risk: the window kernels against their plain twin, with labels that come and go between batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_windows as twin
from kernels import windows as kernel
from tests.unit.kernels.window_cases import (
    ANCHOR_S,
    DAY_S,
    advance,
    anchors,
    assert_same,
    customer_state_of,
    damage,
    history_twin,
    hot_key_events,
    state_of,
)

BUCKET_S = kernel.BUCKET_S[-1]
COUNTS = slice(2 * kernel.NUM_LEVELS, 2 * kernel.NUM_LEVELS + kernel.NUM_RISKS)
FRAUDS = slice(COUNTS.stop, COUNTS.stop + kernel.NUM_RISKS)

# Steps from one event to the next: mostly forward, some as late as may be and later; many meet the edges of buckets.
steps_s = st.one_of(
    st.integers(-DAY_S - 2, 2 * DAY_S),
    st.builds(
        lambda unit, n, by: unit * n + by,
        st.sampled_from([BUCKET_S, DAY_S]),
        st.integers(-1, 9) | st.sampled_from([-40, 40]),
        st.sampled_from([-1, 0, 1]),
    ),
)
batch = st.lists(st.tuples(st.integers(0, 1), steps_s), max_size=10)
label = st.tuples(st.integers(0, 1), st.integers(0, 1 << 16))


def fraud_columns(state, now_s):
    """What a row sees of the risk windows: counts, then frauds."""
    totals = advance([state], [0], [now_s], [0]).totals[0]
    return totals[COUNTS].tolist(), totals[FRAUDS].tolist()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(batch, st.lists(label, max_size=6)), max_size=8), anchors)
def test_kernel_sees_what_the_twin_sees_though_labels_come_and_go_between_batches(stream, anchor_s):
    states = [np.empty(0, np.int64)] * 2
    histories = [twin.KeyHistory() for _ in range(2)]
    now_s = anchor_s
    for rows, labels in stream:
        keys, times = [], []
        for key, step_s in rows:
            now_s = max(0, now_s + step_s)
            keys.append(key)
            times.append(now_s)
        seen = advance(states, keys, times, [10_000] * len(rows))
        states = seen.states
        assert not seen.is_damaged.any()
        for row, (key, second) in enumerate(zip(keys, times, strict=True)):
            expected = histories[key].see(second, 10_000)
            assert_same(seen.totals[row], seen.since_last_s[row], seen.is_late[row], expected)
        for key, pick in labels:
            if histories[key].events:
                number = pick % len(histories[key].events)
                event = histories[key].events[number]
                by = -1 if event.num_frauds else 1
                states[key] = kernel.mark(states[key], event.second, by)
                histories[key].mark(number, by)


def test_fraud_counts_once_its_six_hours_are_seven_days_ago_and_until_each_window_has_passed():
    state = kernel.mark(state_of([ANCHOR_S + BUCKET_S - 1]), ANCHOR_S + BUCKET_S - 1, 1)
    visible_s = ANCHOR_S + 7 * DAY_S
    assert fraud_columns(state, visible_s - 1) == ([0, 0, 0], [0, 0, 0])
    assert fraud_columns(state, visible_s) == ([1, 1, 1], [1, 1, 1])
    for window_s, before, after in [(DAY_S, [1, 1, 1], [0, 1, 1]), (7 * DAY_S, [0, 1, 1], [0, 0, 1]),
                                    (30 * DAY_S, [0, 0, 1], [0, 0, 0])]:  # fmt: skip
        assert fraud_columns(state, visible_s + window_s - 1) == (before, before)
        assert fraud_columns(state, visible_s + window_s) == (after, after)


def test_risk_counts_every_event_of_the_window_and_of_them_the_frauds():
    past = [ANCHOR_S + hour * 3600 for hour in range(24)]
    state = state_of(past)
    for second in (past[3], past[3], past[20]):
        state = kernel.mark(state, second, 1)
    assert fraud_columns(state, ANCHOR_S + 8 * DAY_S - 1) == ([24, 24, 24], [3, 3, 3])


def test_label_taken_back_leaves_the_state_as_it_was_whatever_was_marked_between():
    past = [ANCHOR_S + hour * 3600 for hour in range(0, 200, 5)]
    plain = state_of(past)
    marked = plain
    for second in (past[7], past[3], past[30], past[3]):
        marked = kernel.mark(marked, second, 1)
    for second in (past[3], past[30], past[3], past[7]):
        marked = kernel.mark(marked, second, -1)
    assert marked.tobytes() == plain.tobytes()


def test_taking_back_what_was_not_marked_changes_nothing():
    state = kernel.mark(state_of([ANCHOR_S, ANCHOR_S + DAY_S]), ANCHOR_S, 1)
    assert kernel.mark(state, ANCHOR_S + DAY_S, -1).tobytes() == state.tobytes()


@pytest.mark.parametrize("age_buckets", [kernel.RETAINED_BUCKETS[-1] - 1, kernel.RETAINED_BUCKETS[-1]])
def test_event_is_marked_as_long_as_it_is_retained_and_after_that_not(age_buckets):
    newest_s = ANCHOR_S + 100 * DAY_S
    second = newest_s - age_buckets * BUCKET_S
    state = state_of([second, newest_s])
    is_retained = age_buckets < kernel.RETAINED_BUCKETS[-1]
    assert (kernel.mark(state, second, 1).tobytes() != state.tobytes()) == is_retained


def test_event_after_the_newest_is_not_marked():
    state = state_of([ANCHOR_S])
    assert kernel.mark(state, ANCHOR_S + BUCKET_S, 1).tobytes() == state.tobytes()


def test_frauds_in_every_retained_bucket_stay_within_the_bound_and_exact():
    past = hot_key_events()
    state, history = state_of(past), history_twin(past)
    for number, second in enumerate(past):
        if second % BUCKET_S == 0:
            state = kernel.mark(state, second, 1)
            history.mark(number, 1)
    assert state[2 + kernel.NUM_LEVELS] == kernel.RETAINED_BUCKETS[-1]
    newest_s = past[-1]
    probes = [newest_s, newest_s - DAY_S, newest_s - DAY_S - 1, newest_s + 3600, newest_s + 3 * DAY_S]
    seen = advance([state], [0] * len(probes), probes, [5] * len(probes))
    for row, now_s in enumerate(probes):
        assert_same(seen.totals[row], seen.since_last_s[row], seen.is_late[row], history.see(now_s, 5))
    assert (seen.totals[:, FRAUDS] > 0).all()


def test_damaged_state_and_a_customers_are_given_back_as_they_are():
    sound = state_of([ANCHOR_S])
    for state in (sound[:-1], sound[:1], np.zeros(20, np.int64), customer_state_of([ANCHOR_S], [7])):
        assert kernel.mark(state, ANCHOR_S, 1).tobytes() == state.tobytes()


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from([1, -1]))
def test_marking_a_state_of_any_damage_leaves_it_damaged_or_working(data, by):
    past = hot_key_events()[-40:]
    state = damage(kernel.mark(state_of(past), past[3], 1), data)
    marked = kernel.mark(state, data.draw(st.integers(0, kernel.MAX_EVENT_S - 1) | st.sampled_from(past)), by)
    assert marked.tobytes() == state.tobytes() or not advance([marked], [], [], []).is_damaged.any()
