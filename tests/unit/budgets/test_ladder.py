"""The ladder: what each rung is predicted to take, measured or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.ladder import Ladder, Rung

MS = 1_000_000
RUNGS = (Rung("", 1.0), Rung("reasons", 0.7), Rung("features", 0.4))


def test_unmeasured_rungs_take_their_share_of_the_full_time():
    ladder = Ladder(RUNGS)
    ladder.observe(0, 8, 10 * MS)
    assert [ladder.predict_ns(rung, 8) for rung in range(3)] == pytest.approx([10 * MS, 7 * MS, 4 * MS], rel=1e-3)


def test_a_measured_rung_takes_what_was_measured():
    ladder = Ladder(RUNGS)
    ladder.observe(0, 8, 10 * MS)
    ladder.observe(2, 8, 1 * MS)
    assert ladder.predict_ns(2, 8) == pytest.approx(MS, rel=1e-3)
    assert ladder.predict_ns(1, 8) == pytest.approx(7 * MS, rel=1e-3)


def test_before_anything_was_measured_the_prior_is_shared_out():
    ladder = Ladder(RUNGS, prior_ns=1000)
    assert [ladder.predict_ns(rung, 5) for rung in range(3)] == [1000, 700, 400]


def test_measuring_a_lower_rung_first_does_not_change_the_full_prediction():
    ladder = Ladder(RUNGS, prior_ns=1000)
    ladder.observe(2, 8, 500 * MS)
    assert ladder.predict_ns(0, 8) == 1000
    assert ladder.predict_ns(2, 8) <= 1000


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 300), st.integers(1, 10**10)), max_size=30),
    st.integers(1, 400),
)
def test_no_rung_is_predicted_to_be_slower_than_the_full_answer(seen, items):
    ladder = Ladder(RUNGS)
    for rung, size, duration_ns in seen:
        ladder.observe(rung, size, duration_ns)
    assert all(ladder.predict_ns(rung, items) <= ladder.predict_ns(0, items) for rung in (1, 2))


def test_names_are_what_is_left_out():
    assert [Ladder(RUNGS).name(rung) for rung in range(3)] == ["", "reasons", "features"]
