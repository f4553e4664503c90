from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from serve.observability.line_budget import LineBudget

SECOND_NS = 1_000_000_000
ticks = st.lists(st.tuples(st.integers(0, 400), st.lists(st.booleans(), max_size=60)), max_size=30)


def is_error(candidate: tuple[int, bool]) -> bool:
    return candidate[1]


@given(ticks=ticks, lines_per_s=st.integers(1, 100))
def test_no_more_lines_are_kept_than_the_rate_allows_and_their_order_stays(
    ticks: list[tuple[int, list[bool]]], lines_per_s: int
) -> None:
    budget, now_ns, num_kept, number = LineBudget(lines_per_s, 0), 0, 0, 0
    for gap_ms, errors in ticks:
        now_ns += gap_ms * 1_000_000
        candidates = list(enumerate(errors, start=number))
        number += len(errors)
        kept = budget.choose(candidates, is_error, now_ns)
        num_kept += len(kept)
        assert kept == sorted(kept)
        assert set(kept) <= set(candidates)
        assert num_kept <= lines_per_s + math.floor(now_ns * lines_per_s / SECOND_NS) + 1


@given(errors=st.lists(st.booleans(), max_size=300), lines_per_s=st.integers(1, 100))
def test_an_error_is_left_out_only_when_no_other_line_was_kept_in_its_place(
    errors: list[bool], lines_per_s: int
) -> None:
    candidates = list(enumerate(errors))
    kept = LineBudget(lines_per_s, 0).choose(candidates, is_error, 0)
    num_errors_left_out = sum(errors) - sum(map(is_error, kept))
    assert num_errors_left_out == max(0, sum(errors) - lines_per_s)
    if num_errors_left_out:
        assert all(map(is_error, kept))


def test_a_flood_of_good_lines_leaves_room_for_errors_that_come_after() -> None:
    budget = LineBudget(100, 0)
    assert len(budget.choose([(n, False) for n in range(1_000)], is_error, 0)) == 75
    assert len(budget.choose([(n, True) for n in range(1_000)], is_error, 0)) == 25


def test_the_allowance_comes_back_with_time() -> None:
    budget = LineBudget(100, 0)
    flood = [(n, True) for n in range(1_000)]
    assert [len(budget.choose(flood, is_error, now)) for now in (0, 0, SECOND_NS // 2, 10 * SECOND_NS)] == [
        100,
        0,
        50,
        100,
    ]
