"""The fraud flow: rules beside the model, customers nobody knows, features from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serve.features.store import StoreFailed
from serve.features.windows import FEATURES, Windows
from serve.pipelines.fraud.rules import Rules
from tests.unit.pipelines.fraud.cases import AMOUNT, AVERAGES, FlowBench, transaction


@pytest.fixture
def bench() -> FlowBench:
    return FlowBench()


# Rules


def test_a_rule_that_holds_makes_an_approval_a_review_and_says_so_first(bench):
    bench.flow.rules = Rules(amount=20)
    approved, reviewed, declined = bench.run(transaction("a", 19), transaction("r", 20), transaction("d", 95))
    assert [one.decision for one in (approved, reviewed, declined)] == ["approve", "review", "decline"]
    assert [reason.feature for reason in reviewed.reasons] == ["rule_amount", "amount"]
    assert reviewed.fraud_probability == pytest.approx(0.2)
    assert "20.00" in reviewed.reasons[0].text


def test_rules_about_the_customer_look_at_the_windows_and_do_nothing_without_them(bench):
    bench.flow.rules = Rules(velocity=3, distance=100, speed=900, new_terminal_amount=5)
    bench.store.customer = seen_customer(count_1h=3, is_new=1, km=100, km_per_h=900)
    [decision] = bench.run(transaction("t1", 10))
    assert [reason.feature for reason in decision.reasons[:4]] == [
        "rule_velocity", "rule_distance", "rule_speed", "rule_new_terminal_amount",
    ]  # fmt: skip
    bench.store.customer = seen_customer(count_1h=2, is_new=0, km=99, km_per_h=math.nan)
    assert bench.run(transaction("t2", 10))[0].decision == "approve"
    bench.store.fetch_failure = StoreFailed("late")
    assert bench.run(transaction("t3", 10))[0].decision == "approve"


def test_rules_that_need_no_history_hold_while_there_is_none(bench):
    bench.flow.rules = Rules(velocity=1, distance=1, speed=1, amount=20)
    bench.store.fetch_failure = StoreFailed("late")
    assert [one.decision for one in bench.run(transaction("a", 19), transaction("r", 20))] == ["approve", "review"]


def seen_customer(*, count_1h, is_new, km, km_per_h):
    known = Windows.unknown(1)
    known.totals[0, 0] = count_1h
    known.since_last_s[0] = 60
    known.profile[0] = (1, is_new, km, km_per_h)
    return known


# Cold start


def test_who_was_never_seen_is_scored_by_group_averages_and_the_answer_says_so(bench):
    [decision] = bench.run(transaction("t1", 10))
    assert (decision.cold_start, decision.degraded) == (["customer", "terminal"], [])
    [row] = bench.scorer.scored[0]
    of_keys = [i for i, name in enumerate(FEATURES) if name.startswith(("customer_", "terminal_"))]
    assert np.array_equal(row[of_keys], AVERAGES[of_keys])
    ratio, average = (FEATURES.index(name) for name in ("amount_over_customer_average_7d", "customer_average_7d"))
    assert row[ratio] == pytest.approx(10 / AVERAGES[average])


def test_a_known_customer_at_a_new_terminal_keeps_the_own_history(bench):
    bench.store.customer = seen_customer(count_1h=3, is_new=1, km=0, km_per_h=0)
    [decision] = bench.run(transaction("t1", 10))
    assert decision.cold_start == ["terminal"]
    assert bench.scorer.scored[0][0, FEATURES.index("customer_count_1h")] == 3


# Features from elsewhere


class Elsewhere:
    """A feature source that doubles the amount, or has no answer."""

    def __init__(self, *, is_there: bool) -> None:
        self.is_there = is_there

    def read(self, events):
        return self if self.is_there else None

    def put_into(self, rows):
        rows[:, AMOUNT] *= 2


def test_features_from_elsewhere_stand_in_for_our_own():
    bench = FlowBench(source=Elsewhere(is_there=True))
    [decision] = bench.run(transaction("t1", 40))
    assert (decision.fraud_probability, decision.degraded) == (pytest.approx(0.8), [])


def test_features_from_elsewhere_that_are_not_there_leave_our_own_and_are_said():
    bench = FlowBench(source=Elsewhere(is_there=False))
    [decision] = bench.run(transaction("t1", 40))
    assert (decision.fraud_probability, decision.degraded) == (pytest.approx(0.4), ["feast"])
    assert bench.store.commits == [["t1"]]
