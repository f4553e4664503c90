"""The gate: one push per turn of the loop and route, and every arrival answered at its deadline at the latest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from serve.batching.arrival import Answer, Arrival
from serve.batching.collector import Collector
from serve.errors import Cancelled, DeadlineExceeded, Overloaded
from serve.ingress.gate import Gate, late_answers
from tests.unit.batching.cases import FAR_NS, MS, arrival


class FakeLoop:
    """Runs what was asked for when told to; later calls in order of asking."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], Any]] = []
        self.later: list[Callable[[], Any]] = []

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self.soon.append(partial(callback, *args))

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> None:
        assert delay_s > 0
        self.later.append(callback)

    def turn(self) -> None:
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()

    def tick(self) -> None:
        callbacks, self.later = self.later, []
        for callback in callbacks:
            callback()


class CountingCollector(Collector):
    def __init__(self, **options: Any) -> None:
        super().__init__("p", **options)
        self.pushes: list[int] = []

    def push(self, arrivals: Sequence[Arrival], now_ns: int) -> Any:
        self.pushes.append(len(arrivals))
        return super().push(arrivals, now_ns)


class Bench:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.answers: list[Answer] = []
        self.failure: Exception | None = None
        self.gate = Gate(self.loop, self._answer, may_run_here=True)

    def _answer(self, answers: Sequence[Answer]) -> None:
        if self.failure is not None:
            raise self.failure
        for answer in answers:
            assert not answer.arrival.is_answered
            answer.arrival.is_answered = True
        self.answers.extend(answers)

    def enter(self, collector: Collector, *, left_ns: int = FAR_NS, items: int = 1) -> Arrival:
        one = arrival(items, left_ns=left_ns, now_ns=time.monotonic_ns(), collector=collector)
        self.gate.enter(one)
        return one

    def tick_until_idle(self) -> None:
        """Lets the wheel's clock pass: arrivals of these tests are due within milliseconds."""
        give_up_s = time.monotonic() + 10
        while self.loop.later:
            assert time.monotonic() < give_up_s
            self.loop.tick()


def test_arrivals_of_one_turn_are_pushed_together():
    bench, collector = Bench(), CountingCollector(max_items=10)
    one = bench.enter(collector)
    two = arrival(now_ns=time.monotonic_ns(), collector=collector)
    two.route = one.route
    bench.gate.enter(two)
    assert collector.pushes == []
    bench.loop.turn()
    assert collector.pushes == [2]
    assert collector.take_now() == [one, two]
    bench.loop.turn()
    assert collector.pushes == [2]


def test_each_route_is_pushed_to_its_own_collector():
    bench = Bench()
    collectors = [CountingCollector(max_items=10) for _ in range(3)]
    for collector in collectors:
        bench.enter(collector)
    bench.loop.turn()
    assert [collector.pushes for collector in collectors] == [[1], [1], [1]]


def test_what_the_collector_refuses_is_answered_at_once():
    bench, collector = Bench(), Collector("p", max_items=1)
    bench.enter(collector)
    refused = bench.enter(collector)
    bench.loop.turn()
    [answer] = bench.answers
    assert answer.arrival is refused
    assert isinstance(answer.error, Overloaded)


def test_a_request_whose_batch_still_runs_is_answered_at_its_deadline():
    bench, collector = Bench(), Collector("p", max_items=10)
    one = bench.enter(collector, left_ns=30 * MS)
    bench.loop.turn()
    assert bench.answers == []
    bench.tick_until_idle()
    [answer] = bench.answers
    assert answer.arrival is one
    assert isinstance(answer.error, DeadlineExceeded)
    assert "30.0 ms" in answer.error.message


def test_nobody_is_answered_before_the_deadline():
    bench, collector = Bench(), Collector("p", max_items=10)
    bench.enter(collector)
    bench.loop.turn()
    for _ in range(5):
        bench.loop.tick()
    assert bench.answers == []
    assert bench.loop.later != []


def test_a_request_that_was_answered_meanwhile_is_not_answered_again():
    bench, collector = Bench(), Collector("p", max_items=10)
    one = bench.enter(collector, left_ns=100 * MS)
    bench.loop.turn()
    one.is_answered = True
    bench.tick_until_idle()
    assert bench.answers == []


def test_the_clock_stops_when_nobody_waits_and_starts_again_with_the_next():
    bench, collector = Bench(), Collector("p", max_items=10)
    bench.enter(collector, left_ns=50 * MS)
    bench.loop.turn()
    assert len(bench.loop.later) == 1
    bench.tick_until_idle()
    bench.enter(collector, left_ns=50 * MS)
    bench.enter(collector, left_ns=50 * MS)
    bench.loop.turn()
    assert len(bench.loop.later) == 1
    bench.tick_until_idle()
    assert len(bench.answers) == 3


def test_an_answer_that_fails_does_not_stop_the_clock_for_everybody_after():
    bench, collector = Bench(), Collector("p", max_items=10)
    bench.enter(collector, left_ns=50 * MS)
    bench.loop.turn()
    bench.failure = RuntimeError("a bug in rendering")
    with pytest.raises(RuntimeError):
        bench.tick_until_idle()
    bench.failure = None
    after = bench.enter(collector, left_ns=50 * MS)
    bench.loop.turn()
    bench.tick_until_idle()
    assert [answer.arrival for answer in bench.answers] == [after]


def test_an_answer_that_fails_does_not_keep_the_other_routes_from_being_pushed():
    bench = Bench()
    full, free = Collector("full", max_items=1), CountingCollector(max_items=10)
    full.push([arrival()], 0)
    bench.enter(full)
    bench.enter(free)
    bench.failure = RuntimeError("a bug in rendering")
    with pytest.raises(RuntimeError):
        bench.loop.turn()
    bench.loop.turn()
    assert free.pushes == [1]


def test_a_client_that_left_is_cancelled_rather_than_late():
    gone, late = late_answers([arrival(left_ns=MS, cancelled=True), arrival(left_ns=MS)])
    assert isinstance(gone.error, Cancelled)
    assert isinstance(late.error, DeadlineExceeded)


def test_late_ones_that_were_given_the_same_time_share_one_error():
    one, two, other = late_answers([arrival(left_ns=ms * MS) for ms in (5, 5, 6)])
    assert one.error is two.error
    assert "6.0 ms" in other.error.message


def test_a_request_that_is_past_its_deadline_when_it_is_read_never_reaches_the_collector():
    bench, collector = Bench(), Collector("p", max_items=10)
    bench.enter(collector, left_ns=-1)
    bench.loop.turn()
    [answer] = bench.answers
    assert isinstance(answer.error, DeadlineExceeded)
    assert collector.num_items == 0
    assert bench.loop.later == []


class Eager(CountingCollector):
    """Runs one of its arrivals each time it is dispatched."""

    num_dispatches = 0

    def dispatch(self, again: Callable[[], None] | None = None) -> bool:
        assert again is not None
        self.num_dispatches += 1
        self.put_back(self.take_now()[1:])
        return self.is_anyone_waiting


def test_a_batch_is_dispatched_each_turn_until_nothing_is_left():
    bench, collector = Bench(), Eager(max_items=10)
    for _ in range(3):
        bench.enter(collector)
    bench.loop.turn()
    while bench.loop.soon:
        assert len(bench.loop.soon) == 1
        bench.loop.turn()
    assert not collector.is_anyone_waiting
    assert collector.num_dispatches == 3


def test_what_is_pushed_while_a_dispatch_is_due_does_not_make_two_of_them():
    bench, collector = Bench(), Eager(max_items=10)
    for _ in range(2):
        bench.enter(collector)
    bench.loop.turn()
    bench.enter(collector)
    bench.loop.turn()
    assert collector.num_dispatches == 3
    assert len(bench.loop.soon) == 0
