"""The runner: every accepted arrival gets exactly one answer, and one bad item harms nobody else."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.batching.arrival import Arrival, Decoded
from serve.batching.runner import Batch, run_isolated
from serve.budgets.ladder import Ladder, Rung
from serve.budgets.timings import Timings
from serve.errors import DeadlineExceeded, HeadroomError, Internal, InvalidInput, Overloaded
from tests.unit.batching.cases import FAR_NS, MS, CallFlow, ListCodec, RecordingListener, RunnerBench, arrival

WAIT_S = 10.0
BAD = "bad"


def raising_on_bad(items: Sequence[Any], batch: Batch) -> list[Any]:
    if BAD in items:
        raise ValueError("of the flow")
    return list(items)


def batch_of(rung: int = 0) -> Batch:
    return Batch(rung, "", FAR_NS, Timings())


def test_a_listener_may_push_one_batch_ahead_of_the_one_that_runs():
    bench = RunnerBench(max_batch_items=4)
    assert bench.runner.room(50)[0] == 4
    bench.collector.push([arrival(3)], 0)
    assert bench.runner.room(50)[0] == 4
    bench.collector.push([arrival(1)], 0)
    assert bench.runner.room(50)[0] == 0
    assert bench.runner.room(50)[1] == bench.collector.bound(50)


# Outcomes


def test_each_request_gets_its_own_items_back():
    bench = RunnerBench()
    assert bench.step(["a"], ["b", "c"], ["d"]) == []
    assert bench.bodies() == [b"a", b"b,c", b"d"]
    assert bench.flow.batches == [["a", "b", "c", "d"]]
    assert bench.collector.num_items == 0


def test_an_item_that_was_wrong_when_decoded_keeps_its_place_and_never_reaches_the_flow():
    bench = RunnerBench()
    bench.step(["a", InvalidInput("no"), "b"], ["c"])
    assert bench.bodies() == [b"a,invalid_input error,b", b"c"]
    assert bench.flow.batches == [["a", "b", "c"]]


def test_a_request_of_bad_items_only_is_answered_without_the_flow():
    bench = RunnerBench()
    bench.step([InvalidInput("no")])
    assert bench.bodies() == [b"invalid_input error"]
    assert bench.flow.batches == []


def test_a_request_that_cannot_be_decoded_fails_alone_with_its_own_error():
    bench = RunnerBench()
    bench.step(["a"], ["whole request is wrong"], ["b"])
    assert set(bench.bodies()) == {b"a", b"b", None}
    [error] = [error for error in bench.listener.errors() if error is not None]
    assert isinstance(error, InvalidInput)
    assert error.field == "x"


@pytest.mark.parametrize(
    "bug", [ValueError("secret"), RecursionError("secret"), UnicodeDecodeError("u", b"", 0, 1, "")]
)
def test_a_bug_in_decoding_fails_one_request_and_its_text_is_not_sent(bug):
    bench = RunnerBench()
    bench.step(["a"], [bug])
    [error] = [error for error in bench.listener.errors() if error is not None]
    assert type(error) is Internal
    assert "secret" not in error.message
    assert b"a" in bench.bodies()


@pytest.mark.parametrize(("item", "kind"), [("cannot be encoded", "internal"), ("raises its error", "invalid_input")])
def test_an_answer_that_cannot_be_encoded_is_that_requests_error_only(item, kind):
    bench = RunnerBench()
    bench.step(["a"], [item], ["b"])
    assert [None if e is None else e.kind for e in bench.listener.errors()] == [None, kind, None]


def test_a_flow_that_raises_is_bisected_until_the_item_to_blame_is_alone():
    bench = RunnerBench(CallFlow(raising_on_bad))
    bench.step(["a"], ["b", BAD], ["c"], ["d"])
    assert bench.bodies() == [b"a", b"b,internal error", b"c", b"d"]
    assert bench.collector.num_items == 0


def test_a_known_error_of_the_flow_reaches_the_item_that_is_to_blame():
    def refuse_bad(items, batch):
        if BAD in items:
            raise InvalidInput("of the item", field="amount")
        return list(items)

    outcomes = run_isolated(CallFlow(refuse_bad), ["a", BAD, "b"], batch_of())
    assert outcomes[0] == "a"
    assert outcomes[2] == "b"
    assert outcomes[1].field == "amount"


@given(st.lists(st.sampled_from(["good", BAD]), min_size=1, max_size=40))
def test_bisection_keeps_every_good_outcome_in_its_place(items):
    logging.getLogger("serve.batching.runner").disabled = True
    outcomes = run_isolated(CallFlow(raising_on_bad), items, batch_of())
    logging.getLogger("serve.batching.runner").disabled = False
    assert ["good" if one == "good" else BAD for one in outcomes] == items
    assert all(isinstance(one, Internal) for one in outcomes if one != "good")


@pytest.mark.parametrize("num_outcomes", [0, 1, 3])
def test_a_flow_that_gives_the_wrong_number_of_outcomes_is_answered_as_a_bug_of_ours(num_outcomes):
    """Answers must not be shifted from one request to another, and nobody may wait for the deadline."""
    bench = RunnerBench(CallFlow(lambda items, batch: ["x"] * num_outcomes if len(items) == 2 else list(items)))
    bench.arrive(["a"], ["b"])
    bench.collector.close()
    bench.runner.start()
    bench.runner.stop(WAIT_S)
    assert bench.bodies() in ([None, None], [b"a", b"b"])
    assert all(error is None or type(error) is Internal for error in bench.listener.errors())


def test_the_answer_names_what_any_of_its_items_left_out():
    def degrade(items, batch):
        return [SimpleNamespace(degraded=one) for one in items]

    bench = RunnerBench(CallFlow(degrade))
    bench.step([("b",), ("a", "b")], [()])
    assert [answer.degraded for answer in bench.listener.answers] == [("a", "b"), ()]


# Answers


def test_one_reply_per_listener_and_batch():
    bench = RunnerBench()
    other = RecordingListener()
    bench.arrive(["c"], listener=other)
    bench.step(["a"], ["b"])
    assert (bench.listener.num_replies, other.num_replies) == (1, 1)
    assert [answer.encoded.body for answer in other.answers] == [b"c"]


def test_a_listener_that_fails_does_not_cost_another_listener_its_answers(caplog):
    bench = RunnerBench()
    bench.arrive(["lost"], listener=RecordingListener(RuntimeError("event loop is closed")))
    bench.arrive(["a"])
    bench.runner.start()
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a"]
    assert bench.collector.num_items == 0


def test_what_waits_behind_a_batch_that_could_not_be_answered_is_answered_all_the_same():
    bench = RunnerBench(max_batch_items=1)
    bench.arrive(["lost"], listener=RecordingListener(RuntimeError("event loop is closed")))
    bench.arrive(["a"], ["b"])
    bench.runner.start()
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a", b"b"]
    assert bench.collector.num_items == 0


@pytest.mark.parametrize("gone", [{"cancelled": True}, {"is_answered": True}, {"left_ns": -1}])
def test_who_left_or_is_late_is_dropped_without_an_answer_and_frees_its_room(gone):
    bench = RunnerBench()
    left_ns = gone.pop("left_ns", FAR_NS)
    now_ns = time.monotonic_ns()
    [dead] = bench.arrive(["a", "b"], **gone)
    dead.context.deadline = type(dead.context.deadline)(now_ns + left_ns)
    bench.step(["c"])
    assert bench.bodies() == [b"c"]
    assert bench.collector.num_items == 0


def test_a_request_answered_between_forming_and_decoding_is_no_error_of_ours(caplog):
    """Its listener frees the payload at the deadline, in its own thread, while the batch before it is decoded."""
    bench = RunnerBench()
    doomed: list[Arrival] = []

    class FreeingCodec(ListCodec):
        def decode(self, payload: Any) -> Decoded:
            for one in doomed:
                one.is_answered, one.payload = True, None
            return super().decode(payload)

    bench.arrive(["a"], codec=FreeingCodec())
    doomed += bench.arrive(["b"])
    with caplog.at_level(logging.ERROR):
        bench.runner.step(bench.collector.take_now(), 8)
    assert caplog.records == []
    assert bench.bodies()[0] == b"a"
    assert bench.collector.num_items == 0


def test_what_no_rung_fits_is_refused_once_with_the_reason():
    ladder = Ladder((Rung("", 1.0), Rung("less", 0.5)), prior_ns=1000 * MS)
    bench = RunnerBench(ladder=ladder)
    assert bench.step(["a"], left_ns=20 * MS) == []
    [error] = bench.listener.errors()
    assert isinstance(error, Overloaded)
    assert error.reason == "budget"
    assert error.retry_after_ms > 0
    assert bench.flow.batches == []
    assert bench.collector.num_items == 0


def test_more_than_a_batch_holds_waits_for_the_next():
    bench = RunnerBench(max_batch_items=2)
    later = bench.step(["a"], ["b"], ["c"])
    assert [one.payload for one in later] == [["c"]]
    assert bench.collector.num_items == 1
    assert bench.runner.step(later, 2) == []
    assert bench.bodies() == [b"a", b"b", b"c"]
    assert bench.metrics.batches == [2, 1]


# Estimates


class Minutes:
    """A clock for the runner on which each request comes 100 ms after the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bench: RunnerBench) -> None:
        self._now_ns = time.monotonic_ns()
        fake = SimpleNamespace(
            monotonic_ns=lambda: self._now_ns, monotonic=time.monotonic, thread_time_ns=time.thread_time_ns
        )
        monkeypatch.setattr("serve.batching.runner.time", fake)
        bench.clock = fake.monotonic_ns
        self._bench = bench

    def run(self, num_requests: int) -> None:
        for _ in range(num_requests):
            self._now_ns += 100 * MS
            self._bench.step(["a"], left_ns=1000 * MS)


def test_one_slow_batch_does_not_refuse_everything_that_follows_for_ever(monkeypatch):
    """An estimate that only running batches can correct must not keep batches from running."""
    ladder = Ladder((Rung("", 1.0),))
    ladder.observe(0, 1, 10_000 * MS)
    bench = RunnerBench(ladder=ladder)
    Minutes(monkeypatch, bench).run(1000)
    assert bench.bodies()[-10:] == [b"a"] * 10


def test_one_slow_batch_does_not_degrade_everything_that_follows_for_ever(monkeypatch):
    ladder = Ladder((Rung("", 1.0), Rung("less", 0.5)))
    ladder.observe(0, 1, 1500 * MS)
    bench = RunnerBench(ladder=ladder)
    Minutes(monkeypatch, bench).run(1000)
    assert bench.flow.rungs[-10:] == [0] * 10


def test_malformed_requests_do_not_teach_the_ladder_that_batches_are_quick():
    ladder = Ladder((Rung("", 1.0),))
    ladder.observe(0, 1, 10 * MS)
    before_ns = ladder.predict_ns(0, 1)
    bench = RunnerBench(ladder=ladder)
    for _ in range(200):
        bench.step(["whole request is wrong"])
    assert ladder.predict_ns(0, 1) == before_ns


def test_stages_are_recorded_with_decode_first_and_encode_last():
    def staged(items, batch):
        batch.timings.start()
        batch.timings.end("score")
        return list(items)

    bench = RunnerBench(CallFlow(staged))
    bench.step(["a", "b"])
    assert bench.metrics.stages == [("decode", 2), ("score", 2), ("encode", 2)]
    names = re.findall(r"(\w+);dur=", bench.listener.answers[0].server_timing)
    assert names[:2] == ["decode", "score"]


def test_the_flow_is_told_the_tightest_deadline_and_the_rung():
    told: list[Batch] = []
    bench = RunnerBench(CallFlow(lambda items, batch: told.append(batch) or list(items)))
    [relaxed] = bench.arrive(["a"])
    [tight] = bench.arrive(["b"], left_ns=60_000 * MS)
    bench.runner.step(bench.collector.take_now(), 8)
    assert (told[0].deadline_ns, told[0].rung, told[0].rung_name) == (tight.context.deadline.at_ns, 0, "")
    assert relaxed.context.deadline.at_ns > tight.context.deadline.at_ns


# Threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_stop_answers_everything_that_was_accepted(num_threads):
    bench = RunnerBench(CallFlow(raising_on_bad), max_batches_in_flight=num_threads, max_batch_items=4, max_items=10**6)
    logging.getLogger("serve.batching.runner").disabled = True
    bench.runner.start()
    for i in range(300):
        bench.arrive(["x"], [BAD] if i % 7 == 0 else ["y", "z"], [InvalidInput("no")])
    bench.runner.stop(WAIT_S)
    logging.getLogger("serve.batching.runner").disabled = False
    assert len(bench.listener.answers) == 900
    assert len({id(answer.arrival) for answer in bench.listener.answers}) == 900
    assert bench.collector.num_items == 0


def test_stop_gives_up_on_a_flow_that_hangs():
    release = threading.Event()

    def hang(items, batch):
        release.wait(WAIT_S)
        return list(items)

    bench = RunnerBench(CallFlow(hang))
    bench.runner.start()
    bench.arrive(["a"])
    began_s = time.monotonic()
    bench.runner.stop(0.05)
    assert time.monotonic() - began_s < WAIT_S / 2
    release.set()
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a"]


def test_what_arrives_while_a_batch_runs_is_the_next_batch():
    entered, release = threading.Event(), threading.Event()

    def wait_once(items, batch):
        entered.set()
        release.wait(WAIT_S)
        return list(items)

    bench = RunnerBench(CallFlow(wait_once))
    bench.runner.start()
    bench.arrive(["a"])
    bench.collector.dispatch()
    assert entered.wait(WAIT_S)
    bench.arrive(["b"], ["c"])
    release.set()
    bench.runner.stop(WAIT_S)
    assert bench.flow.batches == [["a"], ["b", "c"]]


def test_an_outcome_of_any_known_kind_is_told_apart_from_a_value():
    bench = RunnerBench(CallFlow(lambda items, batch: [DeadlineExceeded("late"), "fine"]))
    bench.step(["a", "b"])
    assert bench.bodies() == [b"deadline_exceeded error,fine"]
    assert issubclass(DeadlineExceeded, HeadroomError)
