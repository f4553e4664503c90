"""Forming: who goes into the next batch, on which rung, and who is refused, dropped or left waiting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.batching.arrival import Arrival
from serve.batching.forming import Formed, form
from tests.unit.batching.cases import FAR_NS, MS, LinearLadder, arrival

NOW_NS = 10**12


def at(items: int = 1, *, left_ms: float = 1e6, **options: bool) -> Arrival:
    return arrival(items, left_ns=int(left_ms * MS), now_ns=NOW_NS, **options)


ladders = st.builds(
    LinearLadder,
    st.just(1.0),
    st.floats(0.05, 1.0),
    st.floats(0.01, 0.5),
    fixed_ns=st.integers(0, 5 * MS),
    item_ns=st.integers(1, 2 * MS),
)
waiting_lists = st.lists(
    st.builds(
        at,
        st.integers(1, 12),
        left_ms=st.one_of(st.floats(-5, 40), st.just(1e6)),
        cancelled=st.sampled_from([False] * 9 + [True]),
        is_answered=st.sampled_from([False] * 9 + [True]),
    ),
    max_size=15,
)


def left_ns(one: Arrival) -> int:
    return one.context.deadline.remaining_ns(NOW_NS)


def is_live(one: Arrival) -> bool:
    return not (one.is_answered or one.context.cancelled) and left_ns(one) > 0


def all_of(formed: Formed) -> list[Arrival]:
    return [*formed.run, *formed.refused, *formed.dropped, *formed.later]


@given(waiting_lists, ladders, st.integers(1, 32))
def test_every_waiting_arrival_ends_in_exactly_one_list(waiting, ladder, max_items):
    formed = form(waiting, NOW_NS, ladder, max_items)
    assert sorted(map(id, all_of(formed))) == sorted(map(id, waiting))


@given(waiting_lists, ladders, st.integers(1, 32))
def test_everyone_in_the_batch_is_predicted_to_meet_the_deadline(waiting, ladder, max_items):
    formed = form(waiting, NOW_NS, ladder, max_items)
    for one in formed.run:
        assert ladder.predict_ns(formed.rung, formed.num_items) <= left_ns(one)


@given(waiting_lists, ladders, st.integers(1, 32))
def test_only_dead_arrivals_are_dropped_and_none_is_run_or_refused(waiting, ladder, max_items):
    formed = form(waiting, NOW_NS, ladder, max_items)
    assert not any(map(is_live, formed.dropped))
    assert all(map(is_live, [*formed.run, *formed.refused]))


@given(waiting_lists, ladders, st.integers(1, 32))
def test_a_batch_is_no_larger_than_allowed_unless_one_arrival_alone_is(waiting, ladder, max_items):
    formed = form(waiting, NOW_NS, ladder, max_items)
    assert formed.num_items <= max_items or len(formed.run) == 1


@given(waiting_lists, ladders, st.integers(1, 32))
def test_something_happens_whenever_something_lives(waiting, ladder, max_items):
    formed = form(waiting, NOW_NS, ladder, max_items)
    if any(map(is_live, waiting)):
        assert formed.run or formed.refused


@given(waiting_lists, ladders)
def test_nobody_is_refused_whom_a_rung_fits_alone_when_one_batch_holds_all(waiting, ladder):
    formed = form(waiting, NOW_NS, ladder, 10_000)
    for one in formed.refused:
        assert all(ladder.predict_ns(rung, one.items) > left_ns(one) for rung in range(3))


@given(waiting_lists, ladders)
def test_nobody_is_degraded_whom_a_smaller_batch_would_serve_in_full(waiting, ladder):
    formed = form(waiting, NOW_NS, ladder, 10_000)
    if formed.rung > 0:
        assert all(ladder.predict_ns(0, one.items) > left_ns(one) for one in formed.run)


@given(waiting_lists, ladders)
def test_whoever_fits_the_full_batch_is_neither_degraded_nor_refused(waiting, ladder):
    formed = form(waiting, NOW_NS, ladder, 10_000)
    full_ns = ladder.predict_ns(0, sum(one.items for one in waiting if is_live(one)))
    relaxed = [one for one in waiting if is_live(one) and left_ns(one) >= full_ns]
    unharmed = formed.later + (formed.run if formed.rung == 0 else [])
    assert {id(one) for one in relaxed} <= {id(one) for one in unharmed}


@given(waiting_lists, ladders, st.integers(1, 32))
def test_what_waits_keeps_the_order_of_arrival(waiting, ladder, max_items):
    formed = form(waiting, NOW_NS, ladder, max_items)
    order = {id(one): i for i, one in enumerate(waiting)}
    later = [order[id(one)] for one in formed.later]
    assert later == sorted(later)


@given(st.lists(st.floats(0.1, 120), min_size=1, max_size=120), st.sampled_from([4, 16, 32]))
def test_under_load_no_batch_is_smaller_than_a_quarter(left, max_items):
    """One rung, arrivals of one item: nothing but the deadlines could ask for a small batch."""
    ladder = LinearLadder(1.0, item_ns=MS)
    waiting = [at(left_ms=ms) for ms in left]
    formed = form(waiting, NOW_NS, ladder, max_items)
    if len(waiting) > max_items and max_items - len(formed.refused) >= max_items // 4:
        assert formed.num_items >= max_items // 4


def test_one_tight_arrival_under_load_does_not_run_alone():
    """19 others wait behind a batch of 16: a batch of one would cost them the throughput they need."""
    waiting = [at(left_ms=10), *(at() for _ in range(19))]
    formed = form(waiting, NOW_NS, LinearLadder(1.0, item_ns=MS), 16)
    assert waiting[0] in formed.run
    assert formed.num_items >= 4


def test_when_everybody_fits_all_go_together():
    waiting = [at(3), at(2), at(1)]
    formed = form(waiting, NOW_NS, LinearLadder(1.0), 8)
    assert (formed.run, formed.rung, formed.later) == (waiting, 0, [])


def test_a_tight_arrival_goes_first_in_a_smaller_batch_on_the_full_rung():
    tight, relaxed = at(left_ms=3), [at(4), at(2)]
    formed = form([*relaxed, tight], NOW_NS, LinearLadder(1.0, 0.1), 8)
    assert (formed.run, formed.rung, formed.later) == ([tight], 0, relaxed)


def test_the_most_urgent_of_the_tight_ones_is_never_left_behind():
    waiting = [at(left_ms=9), at(left_ms=5), at(left_ms=2.5), at(10)]
    formed = form(waiting, NOW_NS, LinearLadder(1.0), 100)
    assert formed.run == [waiting[2], waiting[1]]
    assert formed.later == [waiting[0], waiting[3]]


def test_a_tight_arrival_takes_the_first_rung_that_fits_and_its_neighbours_stay_undegraded():
    tight, neighbour = at(2, left_ms=1.2), at(1)
    formed = form([tight, neighbour], NOW_NS, LinearLadder(1.0, 0.5, 0.1), 8)
    assert (formed.run, formed.rung, formed.later) == ([tight], 1, [neighbour])


def test_what_no_rung_fits_is_refused_and_the_others_run_in_full():
    hopeless, fine = at(left_ms=0.01), at(5)
    formed = form([hopeless, fine], NOW_NS, LinearLadder(1.0, 0.5), 8)
    assert (formed.refused, formed.run, formed.rung, formed.later) == ([hopeless], [fine], 0, [])


def test_an_arrival_larger_than_a_batch_runs_alone():
    large, small = at(100), at(1)
    formed = form([large, small], NOW_NS, LinearLadder(1.0), 8)
    assert (formed.run, formed.later) == ([large], [small])
    formed = form([small, large], NOW_NS, LinearLadder(1.0), 8)
    assert (formed.run, formed.later) == ([small], [large])


@pytest.mark.parametrize("gone", [{"cancelled": True}, {"is_answered": True}, {"left_ms": 0.0}, {"left_ms": -1.0}])
def test_who_left_or_is_late_costs_the_batch_nothing(gone):
    dead, alive = at(8, **gone), at(8)
    formed = form([dead, alive], NOW_NS, LinearLadder(1.0), 8)
    assert (formed.dropped, formed.run) == ([dead], [alive])


def test_nothing_waiting_forms_nothing():
    assert all_of(form([], NOW_NS, LinearLadder(1.0), 8)) == []


def test_a_deadline_that_just_fits_is_not_tight():
    one = at(left_ms=2)
    formed = form([one, at(left_ms=FAR_NS / MS)], NOW_NS, LinearLadder(1.0), 8)
    assert formed.num_items == 2
