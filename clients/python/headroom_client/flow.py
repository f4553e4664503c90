"""One call from first try to answer, as a pure generator: deadline, back-off, retry budget, parsing; no I/O.

It yields Send (try once, within this time) and Wait, receives what the transport made of each Send, and returns the
answer or raises. Clock and random source are passed in. `drive` and `drive_async` are its only drivers; the HTTP and
gRPC clients bring the transport.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from headroom_client.errors import DeadlineExceeded, HeadroomClientError
from headroom_client.wire.operation import Operation, Outcome

Answer = TypeVar("Answer")

NS_PER_MS = 1_000_000
MAX_TIMEOUT_MS = 3_600_000.0
FIRST_BACK_OFF_MS = 25.0
MAX_BACK_OFF_MS = 1_000.0
CALLS_PER_RETRY = 10
MAX_SAVED_RETRIES = 10


@dataclass(frozen=True, slots=True)
class Send:
    """Try once; the answer must be there within `timeout_ms`, which is what is left of the call's deadline."""

    timeout_ms: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for `wait_ms`."""

    wait_ms: float


Flow: TypeAlias = Generator[Send | Wait, Outcome | None, Answer]


class RetryBudget:
    """Bounds a client's retries to one per ten calls, so that they cannot make an overload worse. Thread-safe.

    A token bucket for the rule of "Site Reliability Engineering", chapter 21 (Handling Overload): every call puts a
    tenth of a retry in, every retry takes one out; at most ten are saved, and a new client starts with those.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tenths = MAX_SAVED_RETRIES * CALLS_PER_RETRY

    def note_call(self) -> None:
        """Counts a call, before its first try."""
        with self._lock:
            self._tenths = min(self._tenths + 1, MAX_SAVED_RETRIES * CALLS_PER_RETRY)

    def try_spend(self) -> bool:
        """Takes one retry; False where none is saved."""
        with self._lock:
            has_retry = self._tenths >= CALLS_PER_RETRY
            self._tenths -= CALLS_PER_RETRY * has_retry
            return has_retry


def back_off_ms(retries_before: int, retry_after_ms: float | None, fraction: float) -> float:
    """How long to wait before a retry; `fraction` is random, uniform in [0, 1).

    Exponential back-off with full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015), on top of the
    server's Retry-After: spread after it, because everybody who was refused together was told the same time.
    """
    return (retry_after_ms or 0.0) + fraction * min(FIRST_BACK_OFF_MS * 2.0**retries_before, MAX_BACK_OFF_MS)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Up to `retries` retries a call, as far as the budget, which all calls of a client share, allows."""

    retries: int
    budget: RetryBudget = field(default_factory=RetryBudget)
    clock_ns: Callable[[], int] = time.monotonic_ns
    fraction: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; allowed 0 or more")

    def flow(self, operation: Operation[Any, Answer], timeout_ms: float, request_id: str) -> Flow[Answer]:
        """One call. The deadline starts at the first step and covers every try and wait.

        Only an error that is_retryable, of an operation that is_repeatable, is tried again, and only where the wait
        ends before the deadline and the budget holds a retry; any other error is raised as it came.
        """
        deadline_ns = self.clock_ns() + int(timeout_ms * NS_PER_MS)
        retries = self.retries if operation.is_repeatable else 0
        self.budget.note_call()
        retries_before = 0
        while True:
            remaining_ms = (deadline_ns - self.clock_ns()) / NS_PER_MS
            if remaining_ms <= 0:
                raise DeadlineExceeded(f"no answer within {timeout_ms:g} ms", request_id=request_id)
            outcome = yield Send(remaining_ms)
            try:
                return _answer(operation, outcome)
            except HeadroomClientError as error:
                wait_ms = back_off_ms(retries_before, error.retry_after_ms, self.fraction())
                is_too_late = self.clock_ns() + int(wait_ms * NS_PER_MS) >= deadline_ns
                if not error.is_retryable or retries_before == retries or is_too_late or not self.budget.try_spend():
                    raise
            yield Wait(wait_ms)
            retries_before += 1


def _answer(operation: Operation[Any, Answer], outcome: Outcome | None) -> Answer:
    assert outcome is not None, "a driver answers every Send"
    if isinstance(outcome, HeadroomClientError):
        raise outcome
    return operation.parse(outcome)


def checked_timeout_ms(timeout_ms: float) -> float:
    """Returns `timeout_ms`; raises ValueError unless the server would accept it."""
    if not 0 < timeout_ms <= MAX_TIMEOUT_MS:
        raise ValueError(f"timeout_ms is {timeout_ms}; allowed above 0, at most {MAX_TIMEOUT_MS:.0f}")
    return timeout_ms


def drive(flow: Flow[Answer], send: Callable[[float], Outcome], sleep: Callable[[float], None] = time.sleep) -> Answer:
    """Runs a flow on the calling thread. `send` takes milliseconds, `sleep` seconds."""
    outcome: Outcome | None = None
    try:
        while True:
            match flow.send(outcome):
                case Send(timeout_ms):
                    outcome = send(timeout_ms)
                case Wait(wait_ms):
                    sleep(wait_ms / 1e3)
                    outcome = None
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


async def drive_async(
    flow: Flow[Answer],
    send: Callable[[float], Awaitable[Outcome]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Answer:
    """Runs a flow on the running event loop. `send` takes milliseconds, `sleep` seconds."""
    outcome: Outcome | None = None
    try:
        while True:
            match flow.send(outcome):
                case Send(timeout_ms):
                    outcome = await send(timeout_ms)
                case Wait(wait_ms):
                    await sleep(wait_ms / 1e3)
                    outcome = None
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
