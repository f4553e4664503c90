"""On whose thread a batch runs: a short one on the thread that dispatches it, a long one on the runner's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from serve.batching.runner import Batch
from tests.unit.batching.cases import MS, CallFlow, RunnerBench

WAIT_S = 10.0


class ThreadFlow(CallFlow):
    """A flow that remembers which threads it was called on."""

    def __init__(self) -> None:
        super().__init__(self._remember)
        self.threads: list[threading.Thread] = []

    def _remember(self, items: Sequence[Any], batch: Batch) -> list[Any]:
        self.threads.append(threading.current_thread())
        return list(items)


def nothing() -> None:
    """For dispatches that no thread has to repeat."""


def take_ms_per_item(bench: RunnerBench, ms: int) -> None:
    """Has the runner believe that its batches take that long."""
    for items in (1, 2, 4, 8):
        bench.runner._cpu_time.observe(items, items * ms * MS)


def test_a_short_batch_runs_on_the_thread_that_dispatches_it():
    flow = ThreadFlow()
    bench = RunnerBench(flow)
    bench.runner.start()
    bench.arrive(["a"], ["b"])
    assert bench.runner.dispatch(nothing) is False
    bench.runner.stop(WAIT_S)
    assert flow.threads == [threading.current_thread()]
    assert bench.bodies() == [b"a", b"b"]
    assert bench.collector.num_items == 0


def test_one_batch_runs_at_a_time_and_the_caller_is_asked_to_come_again():
    bench = RunnerBench(max_batch_items=2)
    bench.arrive(["a"], ["b"], ["c"])
    assert bench.runner.dispatch(nothing) is True
    assert bench.bodies() == [b"a", b"b"]
    assert bench.runner.dispatch(nothing) is False
    assert bench.bodies() == [b"a", b"b", b"c"]
    assert bench.collector.num_items == 0


def test_a_batch_here_is_no_larger_than_is_predicted_to_be_short():
    bench = RunnerBench(max_batch_items=8)
    take_ms_per_item(bench, 3)
    bench.arrive(*[[str(i)] for i in range(5)])
    while bench.runner.dispatch(nothing):
        pass
    assert [len(batch) for batch in bench.flow.batches] == [2, 2, 1]


def test_a_long_batch_is_left_to_the_runner_s_thread():
    flow = ThreadFlow()
    bench = RunnerBench(flow)
    take_ms_per_item(bench, 3)
    bench.runner.start()
    bench.arrive(["a", "b", "c"])
    assert bench.runner.dispatch(nothing) is False
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a,b,c"]
    assert flow.threads != [threading.current_thread()]


def test_what_is_pushed_while_another_thread_runs_a_batch_is_run_by_that_thread():
    has_begun, may_end = threading.Event(), threading.Event()

    def wait(items: Sequence[Any], batch: Batch) -> list[Any]:
        has_begun.set()
        assert may_end.wait(WAIT_S)
        return list(items)

    bench = RunnerBench(CallFlow(wait))
    bench.runner.start()
    bench.arrive(["a"])
    bench.collector.dispatch()
    assert has_begun.wait(WAIT_S)
    bench.arrive(["b"])
    assert bench.runner.dispatch(nothing) is False
    assert bench.bodies() == []
    may_end.set()
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a", b"b"]


def test_after_a_long_batch_the_thread_gives_short_ones_back_to_the_listener():
    called, flow = threading.Event(), ThreadFlow()
    bench = RunnerBench(flow, max_batch_items=3)
    take_ms_per_item(bench, 3)
    bench.runner.start()
    bench.arrive(["a", "b", "c"], ["d"])
    assert bench.runner.dispatch(called.set) is False
    assert called.wait(WAIT_S)
    assert bench.bodies() == [b"a,b,c"]
    assert bench.runner.dispatch(nothing) is False
    assert bench.bodies() == [b"a,b,c", b"d"]
    assert flow.threads[-1] is threading.current_thread()
    assert flow.threads[0] is not threading.current_thread()
    bench.runner.stop(WAIT_S)


def test_a_caller_that_may_not_run_batches_has_a_thread_do_it():
    flow = ThreadFlow()
    bench = RunnerBench(flow)
    bench.runner.start()
    bench.arrive(["a"])
    assert bench.runner.dispatch(None) is False
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a"]
    assert flow.threads != [threading.current_thread()]


def test_with_several_batches_in_flight_none_runs_on_the_caller_s_thread():
    flow = ThreadFlow()
    bench = RunnerBench(flow, max_batches_in_flight=2)
    bench.runner.start()
    bench.arrive(["a"])
    assert bench.runner.dispatch(nothing) is False
    bench.runner.stop(WAIT_S)
    assert bench.bodies() == [b"a"]
    assert flow.threads != [threading.current_thread()]


def test_a_bug_outside_the_flow_does_not_reach_the_thread_that_dispatches(caplog):
    bench = RunnerBench()
    bench.metrics.observe_batch = None
    bench.arrive(["a"])
    assert bench.runner.dispatch(nothing) is False
    assert "failed outside the flow" in caplog.text
    assert bench.collector.num_items == 0
