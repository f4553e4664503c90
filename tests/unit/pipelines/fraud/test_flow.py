"""The fraud flow on a store in memory: decisions, repeats, rungs, and what happens when the store fails."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidInput
from serve.features.breaker import Breaker
from serve.features.store import StoreFailed
from serve.features.windows import FEATURES
from serve.pipelines.fraud.contract import MAX_FUTURE_S, Decision
from serve.pipelines.fraud.quality import Calibration
from tests.unit.pipelines.fraud.cases import AMOUNT, AVERAGES, MS, NOW_S, POLICY, FlowBench, transaction

FAILURES_TO_OPEN = 3


@pytest.fixture
def bench() -> FlowBench:
    return FlowBench()


def reopen(bench: FlowBench) -> None:
    """Lets the breakers' time pass: both have a trial open."""
    for breaker in (bench.recording._reading, bench.recording._writing):
        breaker._open_until_ns = 0


# Decisions


def test_each_transaction_gets_its_decision_in_order(bench):
    decisions = bench.run(*[transaction(f"t{amount}", amount) for amount in (10, 40, 95)])
    assert [d.transaction_id for d in decisions] == ["t10", "t40", "t95"]
    assert [d.decision for d in decisions] == ["approve", "review", "decline"]
    assert [d.risk_level for d in decisions] == ["low", "medium", "critical"]
    assert [d.fraud_probability for d in decisions] == pytest.approx([0.10, 0.40, 0.95])
    assert decisions[0].scores == pytest.approx({"for": 0.10, "against": 0.90})
    assert all(d.model_version == "model:7" and d.degraded == [] for d in decisions)


def test_what_is_reviewed_or_declined_has_reasons_and_what_is_approved_has_none(bench):
    approved, reviewed, declined = bench.run(transaction("a", 10), transaction("r", 40), transaction("d", 95))
    assert approved.reasons == []
    for decision in (reviewed, declined):
        assert [reason.feature for reason in decision.reasons] == ["amount"]
        assert decision.reasons[0].contribution > 0
        assert f"{decision.reasons[0].value:.2f}" in decision.reasons[0].text


def test_the_stages_are_timed_in_their_order(bench):
    bench.run(transaction())
    assert list(bench.timings.stages_ns) == ["fetch_features", "assemble_row", "score", "explain", "decide"]


def test_one_batch_is_decided_by_one_policy_although_it_is_replaced_meanwhile(bench):
    """`policy` may be replaced while the flow runs, by another thread."""
    stricter = replace(POLICY, review_at=0.05)
    bench.scorer.on_explain = lambda: setattr(bench.flow, "policy", stricter)
    small, large = bench.run(transaction("small", 10), transaction("large", 95))
    assert (small.decision, large.decision) == ("approve", "decline")
    assert bench.run(transaction("next", 10))[0].decision == "review"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 100), st.booleans()), min_size=1, max_size=12))
def test_every_item_has_one_outcome_and_equal_ids_of_scored_items_have_equal_ones(drawn):
    bench = FlowBench()
    late_s = NOW_S + MAX_FUTURE_S + 5
    items = [transaction(key, amount, timestamp=late_s if late else NOW_S) for key, amount, late in drawn]
    outcomes = bench.run(*items)
    assert len(outcomes) == len(items)
    by_id: dict[str, Decision] = {}
    for item, outcome in zip(items, outcomes, strict=True):
        if isinstance(outcome, Decision):
            assert outcome.transaction_id == item.transaction_id
            assert by_id.setdefault(item.transaction_id, outcome) == outcome
        else:
            assert item.timestamp == late_s
    assert set(bench.store.decisions) == set(by_id)


def test_what_members_cannot_explain_is_told_apart_from_reasons(bench):
    approved, declined = bench.run(transaction("a", 10), transaction("d", 95))
    assert approved.unexplained == 0
    explained = 0.95 - 0.5 * len(FEATURES)
    assert declined.unexplained == pytest.approx(math.log(0.95 / 0.05) - explained, rel=1e-5)


def test_labels_correct_the_probability_and_leave_the_members_scores(bench):
    bench.flow.calibration = Calibration(slope=1.0, shift=math.log(9))
    [decision] = bench.run(transaction("t1", 50))
    assert decision.fraud_probability == pytest.approx(0.9)
    assert decision.scores == pytest.approx({"for": 0.5, "against": 0.5})


def test_a_watcher_sees_every_batch_that_was_scored(bench):
    bench.run(transaction("t1"), transaction("t2"))
    bench.run(transaction("t3"))
    assert bench.watcher.seen == [2, 1]


def test_a_watcher_sees_no_stand_ins_for_what_a_model_is_used_on(bench):
    bench.run(transaction("t1"))
    bench.run(transaction("t1"))
    bench.run(transaction("t2"), rung=2)
    assert bench.watcher.seen == [1]


# Repeats


def test_a_repeated_id_gets_the_stored_decision_whatever_else_it_says(bench):
    [first] = bench.run(transaction("t1", 95))
    again = bench.run(transaction("t1", 10, customer_id="other"), transaction("t2", 10))
    assert again[0] == first
    assert again[1].decision == "approve"
    assert bench.store.commits == [["t1"], ["t2"]]


def test_a_batch_of_repeats_only_records_nothing(bench):
    first = bench.run(transaction("t1", 95), transaction("t2", 10))
    assert bench.run(transaction("t2"), transaction("t1")) == first[::-1]
    assert len(bench.store.commits) == 1


def test_an_id_twice_in_one_batch_is_scored_once_and_the_first_stands(bench):
    first, other, second = bench.run(transaction("t1", 95), transaction("t2", 10), transaction("t1", 10))
    assert first == second
    assert first.decision == "decline"
    assert other.decision == "approve"
    assert len(bench.scorer.scored[0]) == 2
    assert bench.store.commits == [["t1", "t2"]]


def test_a_decision_that_another_process_made_meanwhile_stands():
    bench, other = FlowBench(), FlowBench()
    [theirs] = other.run(transaction("t1", 95))
    bench.store.meanwhile = other.store.decisions
    ours = bench.run(transaction("t0", 10), transaction("t1", 10))
    assert ours[1] == theirs
    assert ours[0].decision == "approve"
    assert all(decision.degraded == [] for decision in ours)


def test_a_stored_decision_keeps_what_was_left_out_when_it_was_made(bench):
    [first] = bench.run(transaction("t1", 95), rung=1)
    assert first.degraded == ["reasons"]
    assert bench.run(transaction("t1", 95))[0] == first


# Times


def test_a_time_too_far_in_the_future_is_that_items_error_only(bench):
    ahead = transaction("ahead", timestamp=NOW_S + MAX_FUTURE_S + 1)
    before, error, after = bench.run(transaction("t1"), ahead, transaction("t2"))
    assert isinstance(error, InvalidInput)
    assert error.field == "timestamp"
    assert str(MAX_FUTURE_S + 1) in error.message
    assert isinstance(before, Decision)
    assert isinstance(after, Decision)
    assert set(bench.store.decisions) == {"t1", "t2"}


def test_a_time_before_1970_is_that_items_error_only(bench):
    old = transaction("old", timestamp=datetime(1960, 1, 1, tzinfo=UTC))
    before, error, after = bench.run(transaction("t1"), old, transaction("t2"))
    assert isinstance(error, InvalidInput)
    assert error.field == "timestamp"
    assert isinstance(before, Decision)
    assert isinstance(after, Decision)


def test_a_time_up_to_a_day_ahead_is_taken(bench):
    assert isinstance(bench.run(transaction(timestamp=NOW_S + MAX_FUTURE_S))[0], Decision)


def test_a_batch_of_errors_only_asks_nobody(bench):
    outcomes = bench.run(*[transaction(f"t{i}", timestamp=NOW_S * 2) for i in range(3)])
    assert all(isinstance(one, InvalidInput) for one in outcomes)
    assert (bench.store.fetches, bench.store.commits, bench.scorer.scored) == ([], [], [])


def test_a_repeat_of_an_item_that_was_wrong_is_judged_by_itself(bench):
    wrong, right = bench.run(transaction("t1", timestamp=NOW_S * 2), transaction("t1"))
    assert isinstance(wrong, InvalidInput)
    assert isinstance(right, Decision)


# Rungs


def test_the_first_rung_leaves_out_the_reasons_and_says_so_where_there_would_be_some(bench):
    approved, declined = bench.run(transaction("a", 10), transaction("d", 95), rung=1)
    assert (approved.degraded, declined.degraded) == ([], ["reasons"])
    assert declined.reasons == []
    assert bench.scorer.explained == []
    assert bench.store.commits == [["a", "d"]]


def test_the_second_rung_scores_group_averages_without_asking_the_store(bench):
    approved, declined = bench.run(transaction("a", 10), transaction("d", 95), rung=2)
    assert approved.degraded == ["features", "unrecorded"]
    assert declined.degraded == ["features", "reasons", "unrecorded"]
    assert (bench.store.fetches, bench.store.commits) == ([], [])
    [rows] = bench.scorer.scored
    assert rows[:, AMOUNT].tolist() == [10, 95]
    of_keys = [i for i, name in enumerate(FEATURES) if name.startswith(("customer_", "terminal_"))]
    assert np.array_equal(rows[:, of_keys], np.tile(AVERAGES[of_keys], (2, 1)))


def test_rungs_leave_out_what_the_configuration_says_in_its_order():
    bench = FlowBench(rungs=("features",))
    [declined] = bench.run(transaction("d", 95), rung=1)
    assert declined.degraded == ["features", "unrecorded"]
    assert [reason.feature for reason in declined.reasons] == ["amount"]


# The explain budget


def test_the_explain_budget_limits_the_rows_that_are_explained_and_the_rest_says_so():
    bench = FlowBench(explain_budget_ns=1)
    bench.run(transaction("first", 95))
    decisions = bench.run(*[transaction(f"t{i}", 95) for i in range(5)])
    assert bench.scorer.explained == [1, 1]
    assert [d.degraded for d in decisions] == [[], *[["reasons"]] * 4]
    assert [len(d.reasons) for d in decisions] == [1, 0, 0, 0, 0]


def test_the_first_batch_of_explanations_after_a_start_does_not_overrun_the_budget(monkeypatch):
    """What a row costs must be known from warming up: guessed at nothing, the first batch explains all of its rows."""
    clock = SimpleNamespace(now_ns=10**12)
    monkeypatch.setattr("serve.pipelines.fraud.flow.time", SimpleNamespace(monotonic_ns=lambda: clock.now_ns))
    bench = FlowBench(explain_budget_ns=12 * MS)
    bench.scorer.on_explain = lambda: setattr(clock, "now_ns", clock.now_ns + bench.scorer.explained[-1] * MS)
    bench.flow.warm_up(256, lambda rows, took_ns: None)
    bench.run(*[transaction(f"t{i}", 95) for i in range(1000)])
    assert bench.scorer.explained[-1] <= 13


# A store that fails


def test_a_store_that_cannot_be_read_degrades_to_group_averages_and_says_so(bench):
    bench.store.fetch_failure = StoreFailed("damaged")
    [decision] = bench.run(transaction("t1", 10))
    assert decision.degraded == ["features", "unrecorded"]
    assert bench.store.commits == []
    assert bench.sink.events == ["fetch_damaged"]


def test_the_reading_breaker_opens_after_failures_in_a_row_and_tries_again_later(bench):
    bench.store.fetch_failure = StoreFailed("damaged")
    for i in range(FAILURES_TO_OPEN + 4):
        assert bench.run(transaction(f"t{i}"))[0].degraded == ["features", "unrecorded"]
    assert len(bench.store.fetches) == FAILURES_TO_OPEN
    assert bench.sink.states["breaker_open"] == 1
    reopen(bench)
    bench.run(transaction("trial"))
    assert len(bench.store.fetches) == FAILURES_TO_OPEN + 1
    bench.run(transaction("open again"))
    assert len(bench.store.fetches) == FAILURES_TO_OPEN + 1


def test_a_store_that_comes_back_is_used_again_and_the_breaker_is_shown_closed(bench):
    bench.store.fetch_failure = StoreFailed("unavailable")
    for i in range(FAILURES_TO_OPEN):
        bench.run(transaction(f"t{i}"))
    bench.store.fetch_failure = None
    reopen(bench)
    assert bench.run(transaction("back"))[0].degraded == []
    assert "back" in bench.store.decisions
    assert bench.sink.states["breaker_open"] == 0


@pytest.mark.parametrize("event", ["late", "full", "busy", "closed"])
def test_what_could_not_be_recorded_says_so_and_is_answered_all_the_same(bench, event):
    bench.store.commit_failure = StoreFailed(event)
    approved, declined = bench.run(transaction("t1", 10), transaction("t2", 95))
    assert (approved.degraded, declined.degraded) == (["unrecorded"], ["unrecorded"])
    assert declined.reasons != []
    assert bench.sink.events == [f"commit_{event}"]


def test_a_stored_decision_beside_one_that_could_not_be_recorded_is_not_called_unrecorded(bench):
    [stored] = bench.run(transaction("t1", 95))
    bench.store.commit_failure = StoreFailed("late")
    again, fresh = bench.run(transaction("t1"), transaction("t2"))
    assert again == stored
    assert fresh.degraded == ["unrecorded"]


def test_the_writing_breaker_opens_and_recovers_while_features_are_still_read(bench):
    bench.store.commit_failure = StoreFailed("full")
    for i in range(FAILURES_TO_OPEN + 2):
        assert bench.run(transaction(f"t{i}"))[0].degraded == ["unrecorded"]
    assert len(bench.store.commits) == FAILURES_TO_OPEN
    assert bench.sink.events[-1] == "commit_breaker_open"
    bench.store.commit_failure = None
    reopen(bench)
    assert bench.run(transaction("back"))[0].degraded == []
    assert bench.sink.states["breaker_open"] == 0


def test_a_commit_may_take_the_stages_budget_and_its_grace(bench):
    before_ns = time.monotonic_ns()
    bench.run(transaction())
    [deadline_ns] = bench.store.deadlines_ns
    assert before_ns + 17 * MS <= deadline_ns <= time.monotonic_ns() + 17 * MS


# Warming up


def test_warming_up_records_nothing_and_uses_every_part(bench):
    bench.flow.warm_up(256, lambda rows, took_ns: None)
    assert bench.store.commits == []
    assert bench.store.decisions == {}
    assert bench.scorer.scored
    assert bench.scorer.explained


def test_warming_up_tells_what_batches_of_each_size_took(bench):
    told: list[tuple[int, int]] = []
    bench.flow.warm_up(256, lambda rows, took_ns: told.append((rows, took_ns)))
    assert [rows for rows, _ in told] == [1, 16, 64, 256]
    assert all(took_ns > 0 for _, took_ns in told)


def test_warming_up_survives_a_store_that_fails(bench):
    bench.store.fetch_failure = StoreFailed("unavailable")
    bench.flow.warm_up(256, lambda rows, took_ns: None)
    assert bench.scorer.scored


# The breaker alone


def test_a_breaker_passes_until_failures_in_a_row_open_it_for_its_time():
    breaker = Breaker(failures_to_open=2, open_ns=100)
    breaker.failed(0)
    breaker.succeeded()
    breaker.failed(0)
    assert breaker.allows(0)
    breaker.failed(10)
    assert breaker.is_open
    assert [breaker.allows(now_ns) for now_ns in (10, 109, 110)] == [False, False, True]
    breaker.failed(110)
    assert [breaker.allows(now_ns) for now_ns in (111, 209, 210)] == [False, False, True]
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.allows(210)
