from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from headroom_client.errors import DeadlineExceeded, HeadroomClientError, InvalidInput, Overloaded, UnexpectedAnswer
from headroom_client.flow import RetryBudget, RetryPolicy, back_off_ms, checked_timeout_ms, drive
from headroom_client.timing import ServerTiming
from headroom_client.wire.operation import Operation, Outcome, Reply
from hypothesis import given
from hypothesis import strategies as st

REPLY = Reply(b"answer", "r-1", ServerTiming())
READ_BODY = Operation("/body", bytes, lambda reply: reply.body)
READ_ONCE = Operation("/once", bytes, lambda reply: reply.body, is_repeatable=False)


def overloaded(retry_after_ms: float | None = None) -> HeadroomClientError:
    return Overloaded("queue is full", retry_after_ms=retry_after_ms, is_retryable=True)


@dataclass
class World:
    """A clock that only sends and sleeps move, and a transport that answers from a script, the last one forever."""

    script: list[Outcome]
    send_ms: float = 1.0
    oversleep_ms: float = 0.0
    now_ns: int = 5_000
    timeouts_ms: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)

    def send(self, timeout_ms: float) -> Outcome:
        self.timeouts_ms.append(timeout_ms)
        self.now_ns += int(self.send_ms * 1e6)
        return self.script[min(len(self.timeouts_ms), len(self.script)) - 1]

    def sleep(self, seconds: float) -> None:
        self.waits_ms.append(seconds * 1e3)
        self.now_ns += int(seconds * 1e9 + self.oversleep_ms * 1e6)

    def policy(self, retries: int = 2, fraction: float = 0.5) -> RetryPolicy:
        return RetryPolicy(retries, clock_ns=lambda: self.now_ns, fraction=lambda: fraction)

    def call(
        self, policy: RetryPolicy, timeout_ms: float = 1_000.0, operation: Operation[object, bytes] = READ_BODY
    ) -> bytes:
        return drive(policy.flow(operation, timeout_ms, "r-1"), self.send, self.sleep)


def test_the_first_answer_is_returned_and_nothing_is_waited_for() -> None:
    world = World([REPLY])
    assert world.call(world.policy()) == b"answer"
    assert (world.timeouts_ms, world.waits_ms) == ([1_000.0], [])


def test_a_retryable_error_is_tried_again_with_the_time_that_is_left() -> None:
    world = World([overloaded(), overloaded(), REPLY], send_ms=10.0)
    assert world.call(world.policy()) == b"answer"
    assert world.waits_ms == pytest.approx([12.5, 25.0])
    assert world.timeouts_ms == pytest.approx([1_000.0, 1_000.0 - 22.5, 1_000.0 - 57.5])


def test_the_last_error_is_raised_as_it_came_when_the_retries_are_used_up() -> None:
    last = overloaded()
    world = World([overloaded(), overloaded(), last])
    with pytest.raises(Overloaded) as raised:
        world.call(world.policy(retries=2))
    assert raised.value is last
    assert len(world.timeouts_ms) == 3


def test_an_error_that_is_not_retryable_is_raised_at_once() -> None:
    world = World([InvalidInput("amount is -1; allowed 0 to 1e9", field="amount"), REPLY])
    with pytest.raises(InvalidInput):
        world.call(world.policy())
    assert len(world.timeouts_ms) == 1


def test_an_operation_that_is_not_repeatable_is_tried_once() -> None:
    world = World([overloaded(), REPLY])
    with pytest.raises(Overloaded):
        world.call(world.policy(), operation=READ_ONCE)
    assert len(world.timeouts_ms) == 1


def test_a_reply_of_another_shape_is_an_unexpected_answer_and_is_not_retried() -> None:
    def refuse(_: Reply) -> bytes:
        raise KeyError("decision")

    world = World([REPLY])
    with pytest.raises(UnexpectedAnswer, match="decision") as raised:
        world.call(world.policy(), operation=Operation("/body", bytes, refuse))
    assert raised.value.request_id == "r-1"
    assert len(world.timeouts_ms) == 1


def test_retry_after_is_waited_for_and_the_jitter_comes_on_top() -> None:
    world = World([overloaded(retry_after_ms=200.0), REPLY])
    world.call(world.policy(fraction=0.5))
    assert world.waits_ms == pytest.approx([212.5])


def test_a_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    world = World([overloaded(retry_after_ms=1_000.0), REPLY])
    with pytest.raises(Overloaded):
        world.call(world.policy(), timeout_ms=1_000.0)
    assert world.waits_ms == []


def test_a_sleep_that_overruns_the_deadline_ends_the_call_without_another_try() -> None:
    world = World([overloaded(), REPLY], oversleep_ms=2_000.0)
    with pytest.raises(DeadlineExceeded) as raised:
        world.call(world.policy())
    assert raised.value.request_id == "r-1"
    assert len(world.timeouts_ms) == 1


@given(
    retry_afters=st.lists(st.none() | st.floats(0, 5_000), min_size=1, max_size=8),
    retries=st.integers(0, 8),
    fraction=st.floats(0, 1, exclude_max=True),
    timeout_ms=st.floats(0.01, 10_000),
    send_ms=st.floats(0.001, 500),
)
def test_no_try_ever_starts_after_the_deadline(
    retry_afters: list[float | None], retries: int, fraction: float, timeout_ms: float, send_ms: float
) -> None:
    world = World([overloaded(after) for after in retry_afters], send_ms=send_ms)
    with pytest.raises(Overloaded):
        world.call(world.policy(retries, fraction), timeout_ms)
    assert all(0 < left <= timeout_ms for left in world.timeouts_ms)
    assert 1 <= len(world.timeouts_ms) <= retries + 1
    assert world.timeouts_ms == sorted(world.timeouts_ms, reverse=True)
    elapsed_ms = (world.now_ns - 5_000) / 1e6
    assert elapsed_ms < timeout_ms + send_ms + 1e-3


def test_the_back_off_doubles_up_to_its_bound() -> None:
    longest = [back_off_ms(n, None, 1.0) for n in range(8)]
    assert longest == [25.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1_000.0, 1_000.0]
    assert back_off_ms(7, 30.0, 0.0) == 30.0


def test_retries_add_a_tenth_to_the_load_of_a_long_outage() -> None:
    world = World([overloaded()])
    policy = world.policy(retries=5)
    for _ in range(1_000):
        with pytest.raises(Overloaded):
            world.call(policy)
    # A tenth of 1 000, less the first, which finds the bucket full; and once the ten that a new client has saved.
    assert len(world.timeouts_ms) - 1_000 == 99 + 10


def test_the_retry_budget_saves_no_more_than_ten() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.note_call()
    assert [budget.try_spend() for _ in range(12)] == [True] * 10 + [False] * 2


def test_the_retry_budget_loses_no_count_between_threads() -> None:
    budget = RetryBudget()
    while budget.try_spend():
        pass
    spent: list[bool] = []

    def work() -> None:
        for _ in range(1_000):
            budget.note_call()
            spent.append(budget.try_spend())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) == 400


@pytest.mark.parametrize("timeout_ms", [0.0, -1.0, float("nan"), float("inf"), 3_600_001.0])
def test_a_timeout_that_the_server_would_refuse_is_refused_here(timeout_ms: float) -> None:
    with pytest.raises(ValueError, match="allowed above 0, at most 3600000"):
        checked_timeout_ms(timeout_ms)


def test_negative_retries_are_refused() -> None:
    with pytest.raises(ValueError, match="retries is -1; allowed 0 or more"):
        RetryPolicy(-1)
