"""The collector: what is taken in, what is refused and why, and who is woken."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.batching.collector import Collector
from serve.errors import NotReady, Overloaded
from tests.unit.batching.cases import FAR_NS, MS, arrival

WAIT_S = 10.0


def test_everything_that_was_pushed_is_taken_in_order():
    collector = Collector("p", max_items=10)
    first, second, third = arrival(), arrival(2), arrival()
    assert collector.push([first, second], 0) == []
    assert collector.push([third], 0) == []
    assert collector.take_now() == [first, second, third]
    assert collector.take_now() == []


def test_the_bound_counts_from_push_until_done():
    collector = Collector("p", max_items=4)
    collector.push([arrival(3)], 0)
    collector.take_now()
    [(refused, reason)] = collector.push([arrival(2)], 0)
    assert refused.items == 2
    assert isinstance(reason, Overloaded)
    assert reason.reason == "queue_full"
    assert "3" in reason.message
    assert "4" in reason.message
    assert collector.push([arrival(1)], 0) == []
    collector.done(3)
    assert collector.push([arrival(3)], 0) == []
    assert collector.num_items == 4


def test_a_smaller_arrival_behind_a_refused_one_still_enters():
    collector = Collector("p", max_items=4)
    small = arrival(1)
    refused = collector.push([arrival(3), arrival(2), small], 0)
    assert [one.items for one, _ in refused] == [2]
    assert collector.take_now()[-1] is small


def test_an_arrival_larger_than_the_bound_enters_when_nothing_else_is_there():
    collector = Collector("p", max_items=4)
    assert collector.push([arrival(100)], 0) == []
    assert len(collector.push([arrival(1)], 0)) == 1
    collector.take_now()
    collector.done(100)
    assert collector.num_items == 0
    assert collector.push([arrival(1)], 0) == []


def test_a_request_is_refused_early_when_its_answer_is_predicted_after_its_share_of_the_time_allowed():
    collector = Collector("p", max_items=100, share=0.5)
    collector.done(0, MS, 2)
    collector.push([arrival(8)], 0)
    assert collector.push([arrival(left_ns=20 * MS)], 0) == []  # 8 ms ahead and a batch of 2 ms: half of 20 ms
    [(_, reason)] = collector.push([arrival(left_ns=20 * MS)], 0)  # 9 ms ahead
    assert isinstance(reason, Overloaded)
    assert reason.reason == "budget"
    assert "11.0 ms" in reason.message
    assert "20.0 ms" in reason.message
    assert reason.retry_after_ms == 9


def test_what_a_request_has_waited_before_it_was_read_counts():
    collector = Collector("p", max_items=100, share=0.5)
    collector.done(0, MS, 2)
    collector.push([arrival(4)], 0)
    assert collector.push([arrival(left_ns=20 * MS)], 4 * MS) == []
    [(_, reason)] = collector.push([arrival(left_ns=20 * MS)], 5 * MS)
    assert isinstance(reason, Overloaded)
    assert reason.reason == "budget"


def test_requests_that_were_given_the_same_time_share_one_refusal():
    collector = Collector("p", max_items=100, share=0.5)
    collector.done(0, MS, 2)
    collector.push([arrival(50)], 0)
    one, two, other = (reason for _, reason in collector.push([arrival(left_ns=ms * MS) for ms in (20, 20, 30)], 0))
    assert one is two
    assert "30.0 ms" in other.message


def test_the_share_may_be_tuned_while_it_serves():
    collector = Collector("p", max_items=100, share=1.0)
    collector.done(0, MS, 1)
    collector.push([arrival(10)], 0)
    assert collector.push([arrival(left_ns=11 * MS)], 0) == []
    collector.share = 0.1
    assert len(collector.push([arrival(left_ns=100 * MS)], 0)) == 1


def test_as_many_may_wait_elsewhere_as_are_planned_within_their_share_of_the_time():
    collector = Collector("p", max_items=100, share=0.5)
    assert collector.bound(20) == 100  # nothing is known yet
    collector.done(0, MS, 2)
    assert collector.bound(20) == 8  # 10 ms, of which the batch that runs takes two
    collector.push([arrival(3)], 0)
    assert collector.bound(20) == 5
    collector.push([arrival(50)], 0)
    assert collector.bound(20) == 1  # somebody has to try
    assert collector.bound(10_000) == 100  # never more than that


def test_a_large_batch_leaves_at_least_half_of_the_share_to_those_that_wait():
    collector = Collector("p", max_items=100, share=0.5)
    collector.done(0, MS, 64)
    assert collector.bound(20) == 5


def test_an_empty_pipeline_never_refuses_for_a_predicted_wait():
    collector = Collector("p", max_items=100)
    collector.done(0, 10**15, 1)
    assert collector.push([arrival(left_ns=1)], 0) == []


def test_a_request_past_its_deadline_is_not_called_overload():
    """It is answered 504 by its listener's wheel; telling it to retry would be wrong."""
    collector = Collector("p", max_items=100)
    reasons = [reason for _, reason in collector.push([arrival(left_ns=-1)], 0)]
    assert not any(isinstance(reason, Overloaded) for reason in reasons)


def test_refusals_say_when_to_retry_and_never_at_once():
    collector = Collector("p", max_items=1)
    collector.push([arrival()], 0)
    [(_, reason)] = collector.push([arrival()], 0)
    assert reason.retry_after_ms >= 1


def test_a_closed_collector_refuses_and_gives_out_what_is_left_then_none():
    collector = Collector("p", max_items=10)
    collector.push([arrival()], 0)
    collector.close()
    [(_, reason)] = collector.push([arrival()], 0)
    assert isinstance(reason, NotReady)
    assert len(collector.take()) == 1
    assert collector.take() is None
    assert collector.take_now() == []


def test_take_gives_up_after_its_timeout():
    assert Collector("p", max_items=1).take(timeout_s=0.001) == []


def test_what_is_put_back_is_taken_first():
    collector = Collector("p", max_items=10)
    first, second, third = arrival(), arrival(), arrival()
    collector.push([first, second], 0)
    taken = collector.take_now()
    collector.push([third], 0)
    collector.put_back(taken)
    assert collector.is_anyone_waiting
    assert collector.take_now() == [first, second, third]
    assert not collector.is_anyone_waiting


def test_a_taker_gets_nothing_that_was_not_dispatched():
    """A listener that has pushed runs it itself, or says that a thread should."""
    collector = Collector("p", max_items=10)
    one = arrival()
    collector.push([one], 0)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(collector.take, WAIT_S)
        collector.put_back(collector.take_now())
        assert not taken.done()
        collector.dispatch()
        assert taken.result(WAIT_S) == [one]


def test_dispatch_wakes_a_blocked_taker():
    collector = Collector("p", max_items=10)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(collector.take, WAIT_S)
        one = arrival()
        collector.push([one], 0)
        collector.dispatch()
        assert taken.result(WAIT_S) == [one]


def test_close_wakes_every_blocked_taker():
    collector = Collector("p", max_items=10)
    with ThreadPoolExecutor(3) as pool:
        takers = [pool.submit(collector.take, WAIT_S) for _ in range(3)]
        collector.close()
        assert [taker.result(WAIT_S) for taker in takers] == [None] * 3


@pytest.mark.parametrize("num_takers", [1, 3])
def test_what_many_threads_push_is_taken_once_each_and_the_count_returns_to_zero(num_takers):
    collector = Collector("p", max_items=10**9)
    per_pusher, taken, lock = 300, [], threading.Lock()

    def push_all() -> None:
        for _ in range(per_pusher):
            assert collector.push([arrival(2, left_ns=FAR_NS)], 0) == []
            collector.dispatch()

    def take_all() -> None:
        while (batch := collector.take()) is not None:
            with lock:
                taken.extend(batch)
            collector.done(sum(one.items for one in batch))

    takers = [threading.Thread(target=take_all) for _ in range(num_takers)]
    pushers = [threading.Thread(target=push_all) for _ in range(4)]
    for thread in takers + pushers:
        thread.start()
    for thread in pushers:
        thread.join(WAIT_S)
    collector.close()
    for thread in takers:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert len({id(one) for one in taken}) == len(taken) == 4 * per_pusher
    assert collector.num_items == 0
