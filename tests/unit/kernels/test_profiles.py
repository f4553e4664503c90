"""Customers' profiles: the kernels against their plain twin, at the poles too, and with damaged words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import profiles
from kernels import reference_windows as twin
from kernels import windows as kernel
from kernels.window_history import profile_history, window_history
from tests.unit.kernels.window_cases import ANCHOR_S, DAY_S, NOWHERE, advance, anchors, customer_state_of

HOUR_S = 3600
TERMINALS_7D, IS_NEW, KM_FROM_HOME, KM_PER_HOUR = range(4)
BERLIN, PARIS, LONDON = (52.52, 13.405), (48.8566, 2.3522), (51.5074, -0.1278)

degrees = st.builds(
    lambda latitude, longitude: (latitude, longitude),
    st.floats(-90, 90) | st.sampled_from([-90.0, 90.0, 0.0, -0.0]),
    st.floats(-180, 180) | st.sampled_from([-180.0, 180.0, 0.0, 179.999, -179.999]),
)
places = st.one_of(degrees, st.sampled_from([BERLIN, PARIS, LONDON]), st.sampled_from([NOWHERE, (math.nan, 1.0)]))
terminals = st.integers(0, 6) | st.sampled_from([(1 << 32) - 1, 1 << 31])
steps_s = st.one_of(
    st.integers(0, 120),
    st.integers(-DAY_S - 2, 2 * DAY_S),
    st.builds(lambda days, by: days * DAY_S + by, st.sampled_from([-40, -1, 6, 7, 29, 30, 31]), st.integers(-3600, 1)),
)
arrivals = st.lists(st.tuples(st.integers(0, 1), steps_s, terminals, places), max_size=60)


def columns_of(stream, anchor_s):
    """Keys, seconds, terminals and places of the arrivals."""
    now_s, seconds = anchor_s, []
    for _, step_s, _, _ in stream:
        now_s = max(0, now_s + step_s)
        seconds.append(now_s)
    return [key for key, *_ in stream], seconds, [t for _, _, t, _ in stream], [place for *_, place in stream]


def through_batches(columns, sizes):
    """Every row's profile, the arrivals split into batches of such sizes, again and again."""
    keys, seconds, terminal, place = columns
    states = [np.empty(0, np.int64)] * 2
    seen, begin, turn = [np.empty((0, profiles.NUM_COLUMNS))], 0, 0
    while begin < len(keys):
        rows = slice(begin, begin + sizes[turn % len(sizes)])
        step = advance(states, keys[rows], seconds[rows], [1] * len(keys[rows]), terminal[rows], place[rows])
        assert not step.is_damaged.any()
        states, begin, turn = step.states, rows.stop, turn + 1
        seen.append(step.profile)
    return np.concatenate(seen)


def at_once(columns):
    """The same from the whole history."""
    keys, seconds, terminal, place = (np.array(column) for column in columns)
    rows = np.argsort(keys, kind="stable")
    starts = np.concatenate((np.flatnonzero(np.diff(keys[rows], prepend=-1)), [len(keys)]))
    one = np.ones(len(keys), np.int64)
    is_late = window_history(rows, starts, seconds, one, one > 1)[2]
    return profile_history(rows, starts, seconds, terminal, place.astype(np.float64), is_late)


def assert_is_the_twins(seen, columns):
    histories = [twin.CustomerHistory() for _ in range(2)]
    for row, key, now_s, terminal, place in zip(seen, *columns, strict=True):
        is_home_clear = math.hypot(*histories[key].home) > 1e-6  # else rounding decides where it is
        expected = histories[key].see(now_s, terminal, place)
        assert row[TERMINALS_7D] == expected.num_terminals_7d
        assert row[IS_NEW] == expected.is_new_terminal
        assert row[KM_PER_HOUR] == pytest.approx(expected.km_per_hour, rel=1e-6, abs=1e-6, nan_ok=True)
        if is_home_clear or math.isnan(expected.km_from_home):
            assert row[KM_FROM_HOME] == pytest.approx(expected.km_from_home, rel=1e-6, abs=1e-6, nan_ok=True)


@settings(deadline=None, max_examples=300)
@given(arrivals, anchors, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_kernel_sees_what_the_twin_sees_in_every_batch(stream, anchor_s, sizes):
    columns = columns_of(stream, anchor_s)
    assert_is_the_twins(through_batches(columns, sizes), columns)


@settings(deadline=None, max_examples=200)
@given(arrivals.filter(len), anchors, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_batches_do_not_matter_and_the_history_kernel_gives_the_same_bits(stream, anchor_s, sizes):
    columns = columns_of(stream, anchor_s)
    seen = through_batches(columns, [1])
    assert seen.tobytes() == through_batches(columns, sizes).tobytes() == at_once(columns).tobytes()


def many_terminals(num_rows, num_terminals, days, seed):
    """One customer's arrivals, a fifth of them up to 30 hours late, a third without a place."""
    rng = np.random.default_rng(seed)
    event_s = ANCHOR_S + np.sort(rng.integers(0, days * DAY_S, num_rows))
    order = np.argsort(event_s + np.where(rng.random(num_rows) < 0.2, rng.integers(0, 30 * HOUR_S, num_rows), 0))
    place = rng.uniform([-90, -180], [90, 180], (num_rows, 2))
    place[rng.random(num_rows) < 1 / 3] = NOWHERE
    terminal = rng.zipf(1.3, num_rows) % num_terminals
    return [0] * num_rows, event_s[order].tolist(), terminal.tolist(), [tuple(one) for one in place.tolist()]


@pytest.mark.parametrize("days", [4, 90])
def test_customer_of_more_terminals_than_a_profile_holds_forgets_those_not_seen_for_longest(days):
    columns = many_terminals(3_000, 400, days, seed=days)
    seen = through_batches(columns, [1, 256, 17])
    assert_is_the_twins(seen, columns)
    assert seen.tobytes() == through_batches(columns, [3_000]).tobytes() == at_once(columns).tobytes()
    assert (seen[:, TERMINALS_7D].max() == profiles.MAX_TERMINALS) == (days == 4)


def probe(state, now_s, terminal=0, place=NOWHERE):
    """What a transaction sees of the customer."""
    return advance([state], [0], [now_s], [1], [terminal], [place]).profile[0]


def test_unknown_customer_has_no_terminals_and_no_home_and_any_terminal_is_new():
    np.testing.assert_array_equal(probe([], ANCHOR_S, 5, BERLIN), [0, 1, np.nan, np.nan])


def test_keys_that_are_no_customers_have_no_profile_and_keep_none():
    seen = advance([[], []], [0, 1], [ANCHOR_S] * 2, [1] * 2)
    assert np.isnan(seen.profile).all()
    assert customer_state_of([ANCHOR_S], [0]).size == seen.states[0].size + profiles.HEAD_WORDS + 1


def test_terminal_counts_for_seven_days_and_is_known_for_thirty_by_whole_hours():
    state = customer_state_of([ANCHOR_S + 59 * 60], [5])
    for hours, num_terminals, is_new in [(167, 1, 0), (168, 0, 0), (719, 0, 0), (720, 0, 1)]:
        assert probe(state, ANCHOR_S + hours * HOUR_S, 5)[:2].tolist() == [num_terminals, is_new]


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        (BERLIN, BERLIN, 0),
        (BERLIN, PARIS, 877.5),
        ((0.0, 0.0), (0.0, 1.0), 111.195),
        ((0.0, 179.9), (0.0, -179.9), 22.239),
        ((0.0, 180.0), (0.0, -180.0), 0),
        ((90.0, 0.0), (90.0, 123.0), 0),
        ((-90.0, 7.0), (-90.0, -7.0), 0),
        ((90.0, 0.0), (-90.0, 0.0), math.pi * profiles.EARTH_KM),
        ((0.0, 0.0), (0.0, 180.0), math.pi * profiles.EARTH_KM),
        ((52.52, 13.405), (52.52 + 1e-5, 13.405), 0.001112),
    ],
)
def test_distance_from_home_and_speed_are_those_of_the_great_circle(a, b, km):
    row = probe(customer_state_of([ANCHOR_S], [0], [a]), ANCHOR_S + 2 * HOUR_S, 0, b)
    assert row[KM_FROM_HOME] == pytest.approx(km, rel=1e-3, abs=1e-9)
    assert row[KM_PER_HOUR] == pytest.approx(km / 2, rel=1e-3, abs=1e-9)


def test_home_between_opposite_places_is_nowhere_in_particular_and_never_fails():
    row = probe(customer_state_of([ANCHOR_S] * 2, [0] * 2, [(0.0, 0.0), (0.0, 180.0)]), ANCHOR_S, 0, BERLIN)
    assert math.isnan(row[KM_FROM_HOME]) or 0 <= row[KM_FROM_HOME] <= math.pi * profiles.EARTH_KM


def test_journeys_of_less_than_a_minute_count_as_a_minute():
    state = customer_state_of([ANCHOR_S], [0], [BERLIN])
    speeds = [probe(state, ANCHOR_S + passed_s, 0, PARIS)[KM_PER_HOUR] for passed_s in (0, 59, 60, 120)]
    assert speeds == pytest.approx([speeds[2]] * 3 + [speeds[2] / 2])


def test_place_that_arrives_late_moves_the_home_but_not_the_last_place():
    state = customer_state_of([ANCHOR_S, ANCHOR_S - HOUR_S], [0, 0], [BERLIN, PARIS])
    later = probe(state, ANCHOR_S + HOUR_S, 0, BERLIN)
    assert later[KM_PER_HOUR] == 0
    assert later[KM_FROM_HOME] == pytest.approx(877.5 / 2, rel=1e-2)
    assert math.isnan(probe(state, ANCHOR_S - 1, 0, BERLIN)[KM_PER_HOUR])


def test_home_follows_a_customer_who_moves_house():
    old, new = [BERLIN] * 100, [PARIS] * 150
    state = customer_state_of([ANCHOR_S] * 250, [0] * 250, old + new)
    assert probe(state, ANCHOR_S, 0, PARIS)[KM_FROM_HOME] < 50
    assert probe(customer_state_of([ANCHOR_S] * 100, [0] * 100, old), ANCHOR_S, 0, BERLIN)[KM_FROM_HOME] < 1e-6


PAST_S = [ANCHOR_S + n * HOUR_S for n in range(30)]


def customer_with_a_past():
    """A state, and where its profile begins."""
    state = customer_state_of(PAST_S, list(range(30)), [BERLIN] * 30)
    return state, state.size - profiles.HEAD_WORDS - 30


def float_word(value):
    return int(np.float64(value).view(np.int64))


@pytest.mark.parametrize(
    ("word", "value"),
    [(0, -1), (0, profiles.MAX_HOME + 1), (1, float_word(np.nan)), (3, float_word(np.inf)), (4, float_word(np.nan)),
     (5, float_word(-np.inf)), (6, -1), (6, kernel.MAX_EVENT_S), (7, -1), (36, -(1 << 63))],
)  # fmt: skip
def test_damaged_profile_begins_anew_and_the_windows_still_count(word, value):
    state, begin = customer_with_a_past()
    state[begin + word] = value
    seen = advance([state], [0, 0], [PAST_S[-1] + 60, PAST_S[-1] + 120], [1] * 2, [3] * 2, [PARIS] * 2)
    assert not seen.is_damaged.any()
    assert seen.totals[:, 3].tolist() == [30, 31]
    np.testing.assert_array_equal(seen.profile, [[0, 1, np.nan, np.nan], [1, 0, 0, 0]])


@pytest.mark.parametrize("num_words", [0, 1, profiles.HEAD_WORDS - 1, profiles.MAX_WORDS + 1, 10_000])
def test_profile_of_a_wrong_length_begins_anew(num_words):
    state, begin = customer_with_a_past()
    seen = advance([np.resize(state[begin:], num_words)], [], [], [])
    assert seen.is_damaged.all() == (num_words > 0)
    wrong = np.concatenate((state[:begin], np.resize(state[begin:], num_words)))
    seen = advance([wrong], [0], [PAST_S[-1]], [1], [3], [PARIS])
    assert not seen.is_damaged.any()
    assert seen.totals[0, 3] == 30
    np.testing.assert_array_equal(seen.profile, [[0, 1, np.nan, np.nan]])


words = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 3000) | st.floats().map(float_word)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 36), words), min_size=1, max_size=4), st.integers(0, 37))
def test_profile_of_any_damage_never_costs_the_windows_and_packs_into_its_bound(changes, num_words):
    state, begin = customer_with_a_past()
    for word, value in changes:
        state[begin + word] = value
    state = state[: begin + num_words]
    n = 200
    seen = advance([state], [0] * n, [PAST_S[-1]] * n, [1] * n, list(range(n)), [PARIS] * n)
    assert not seen.is_damaged.any()
    assert seen.totals[:, 3].tolist() == list(range(30, 30 + n))
    assert ((seen.profile[:, TERMINALS_7D] >= 0) & (seen.profile[:, TERMINALS_7D] <= profiles.MAX_TERMINALS)).all()
    assert seen.states[0].size <= begin + 2 * kernel.NUM_LEVELS * 2 + profiles.MAX_WORDS


@settings(deadline=None, max_examples=100)
@given(st.lists(words, max_size=200), st.data())
def test_no_words_make_the_profile_reach_outside_itself(state, data):
    """In Python, where reaching outside an array fails."""
    profile = np.zeros(profiles.MAX_WORDS, np.int64)
    size = profiles.load.py_func(np.array(state, np.int64), profile)
    row, out = np.empty(profiles.NUM_COLUMNS), np.empty(profiles.MAX_WORDS, np.int64)
    with np.errstate(all="ignore"):
        for terminal in range(data.draw(st.integers(0, 140))):
            profiles.see.py_func(profile, size, ANCHOR_S, ANCHOR_S, terminal, *PARIS, row)
            size = profiles.enter.py_func(profile, size, ANCHOR_S, terminal, *PARIS)
    assert profiles.save.py_func(profile, size, ANCHOR_S, out) <= size <= profiles.MAX_WORDS
