"""Decisions after the fact: looked up with reasons, labelled, erased; each leaving its line."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from serve.budgets.deadline import Deadline
from serve.context import RequestContext
from serve.errors import DependencyFailed, NotFound
from serve.features.store import Labelled, StoreFailed
from serve.pipelines.fraud.quality import Calibration, part_of
from serve.pipelines.fraud.records import FraudRecords, Label
from tests.unit.pipelines.fraud.cases import FlowBench, transaction

CONTEXT = RequestContext("r1", Deadline(1 << 62), 0)


class Desk:
    """Records over the store of a flow; keeps what is counted and audited."""

    def __init__(self) -> None:
        self.bench = FlowBench()
        self.labels: Counter[tuple[int, bool, bool]] = Counter()
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.records = FraudRecords(
            self.bench.store,
            self.bench.scorer,
            self,
            lambda event, _, details: self.audited.append((event, dict(details))),
        )

    def count_label(self, version: str, part: int, *, is_fraud: bool, is_stopped: bool, by: int) -> None:
        assert version == "model:7"
        self.labels[part, is_fraud, is_stopped] += by

    def label(self, **labels: bool) -> list[str]:
        given = [Label(name, fraud) for name, fraud in labels.items()]
        return [result.status for result in self.records.label(given, CONTEXT)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_decision_is_found_as_it_was_answered_beside_its_transaction(desk):
    [decision] = desk.bench.run(transaction("t1", 95))
    found = desk.records.look_up("t1")
    assert found.decision == decision
    assert (found.customer_id, found.terminal_id, found.amount, found.fraud) == ("c1", "m1", 12.34, None)


def test_reasons_that_there_was_no_time_for_are_found_at_the_look_up(desk):
    [hurried] = desk.bench.run(transaction("hurried", 95), rung=1)
    [calm] = desk.bench.run(transaction("calm", 95))
    assert hurried.degraded == ["reasons"]
    found = desk.records.look_up("hurried").decision
    assert found.degraded == []
    assert found.reasons == calm.reasons != []
    assert found.unexplained == calm.unexplained


def test_reasons_of_a_model_that_is_gone_are_not_made_up_by_another(desk):
    desk.bench.run(transaction("t1", 95), rung=1)
    desk.bench.scorer.version = "model:8"
    assert desk.records.look_up("t1").decision.degraded == ["reasons"]


def test_what_is_not_known_is_not_found(desk):
    with pytest.raises(NotFound, match="nobody"):
        desk.records.look_up("nobody")


def test_a_label_is_recorded_once_may_be_changed_and_says_when_nothing_is_known(desk):
    desk.bench.run(transaction("t1", 95))
    assert desk.label(t1=True, t2=True) == ["recorded", "unknown"]
    assert desk.label(t1=True) == ["unchanged"]
    assert desk.records.look_up("t1").fraud is True
    assert desk.label(t1=False) == ["recorded"]
    assert desk.records.look_up("t1").fraud is False


def test_labels_count_by_score_and_a_changed_one_is_taken_back(desk):
    desk.bench.run(transaction("t1", 95), transaction("t2", 10))
    desk.label(t1=True, t2=False)
    high, low = part_of(math.log(0.95 / 0.05)), part_of(math.log(0.10 / 0.90))
    assert +desk.labels == Counter({(high, True, True): 1, (low, False, False): 1})
    desk.label(t1=False)
    assert +desk.labels == Counter({(high, False, True): 1, (low, False, False): 1})


def test_labels_that_the_store_did_not_get_to_are_said_to_have_failed(desk, monkeypatch):
    desk.bench.run(transaction("t1", 95))
    monkeypatch.setattr(desk.bench.store, "label", lambda labels: [Labelled(None, has_failed=True)] * len(labels))
    assert desk.label(t1=True) == ["failed"]
    assert not +desk.labels


def test_labels_measure_the_scores_as_they_were_before_labels_corrected_them(desk):
    desk.bench.flow.calibration = Calibration(slope=1.0, shift=5.0)
    desk.bench.run(transaction("t1", 50))
    desk.label(t1=True)
    assert +desk.labels == Counter({(part_of(0.0), True, True): 1})


def test_the_last_label_of_one_request_stands_and_each_has_its_result(desk):
    desk.bench.run(transaction("t1", 95))
    results = desk.records.label([Label("t1", True), Label("t1", False)], CONTEXT)
    assert [result.status for result in results] == ["recorded", "recorded"]
    assert desk.records.look_up("t1").fraud is False


def test_labels_and_erasures_leave_a_line_without_names(desk):
    desk.bench.run(transaction("t1", 95))
    desk.label(t1=True)
    desk.records.erase("c1", CONTEXT)
    assert desk.bench.store.erased == ["c1"]
    [(_, labelled), (event, erased)] = desk.audited
    assert labelled == {"recorded": 1, "unchanged": 0, "unknown": 0, "labels": {"t1": True}}
    assert event == "erased"
    assert "c1" not in str(erased)


def test_a_store_that_does_not_answer_is_said_and_leaves_no_line(desk):
    desk.bench.store.fetch_failure = desk.bench.store.commit_failure = StoreFailed("unavailable")
    for call in (lambda: desk.records.look_up("t1"), lambda: desk.records.erase("c1", CONTEXT)):
        with pytest.raises(DependencyFailed, match="unavailable"):
            call()
    assert desk.audited == []
