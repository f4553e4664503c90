"""The gate between an event loop and the collectors, shared by the listeners.

Arrivals of one turn of the loop are pushed together, so a runner is woken once for all of them. Deadlines are kept by a
timing wheel: a request is answered on time although its batch still runs. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from serve.batching.arrival import Answer, Arrival, Entrance, Route
from serve.budgets.wheel import TimingWheel
from serve.errors import Cancelled, DeadlineExceeded

_TICK_S = 0.001

AnswerNow = Callable[[Sequence[Answer]], None]


class Gate:
    """`answer` is called, in the loop's thread, with what is refused or late; late ones may be answered already.

    `may_run_here` is for loops that read everything that has arrived before they turn: one that is woken for each
    request by itself would run batches of one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: AnswerNow, *, may_run_here: bool) -> None:
        self._may_run_here = may_run_here
        self._loop = loop
        self._answer = answer
        self._pushed: dict[int, tuple[Route, list[Arrival]]] = {}
        self._wheel: TimingWheel[Arrival] = TimingWheel(time.monotonic_ns())
        self._is_ticking = False
        self._to_dispatch: set[int] = set()

    def enter(self, arrival: Arrival) -> None:
        """Lets an arrival in with this turn's others."""
        if not self._pushed:
            self._loop.call_soon(self._push)
        self._pushed.setdefault(id(arrival.route), (arrival.route, []))[1].append(arrival)

    def _push(self) -> None:
        pushed, self._pushed = self._pushed, {}
        now_ns = time.monotonic_ns()
        answers: list[Answer] = []
        for route, arrivals in pushed.values():
            in_time = [one for one in arrivals if one.context.deadline.at_ns > now_ns]
            refused = route.entrance.push(in_time, now_ns)
            self._await(in_time, {id(arrival) for arrival, _ in refused})
            answers += [Answer(arrival, None, error) for arrival, error in refused]
            if len(in_time) < len(arrivals):
                answers += late_answers([one for one in arrivals if one.context.deadline.at_ns <= now_ns])
        try:
            if answers:
                self._answer(answers)
        finally:
            for route, _ in pushed.values():
                if id(route.entrance) not in self._to_dispatch:
                    self._dispatch(route.entrance)

    def _dispatch(self, entrance: Entrance) -> None:
        """One batch a turn, so that sockets are read and deadlines kept between two."""
        self._to_dispatch.discard(id(entrance))
        if entrance.dispatch(partial(self._dispatch_later, entrance) if self._may_run_here else None):
            self._to_dispatch.add(id(entrance))
            self._loop.call_soon(self._dispatch, entrance)

    def _dispatch_later(self, entrance: Entrance) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._dispatch, entrance)

    def _await(self, pushed: list[Arrival], refused: set[int]) -> None:
        """Files the deadlines of what was taken in."""
        for arrival in pushed:
            if not refused or id(arrival) not in refused:
                self._wheel.add(arrival.context.deadline.at_ns, arrival)
        if not self._is_ticking and self._wheel.num_entries:
            self._is_ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        expired = self._wheel.advance(time.monotonic_ns())
        self._is_ticking = self._wheel.num_entries > 0
        if self._is_ticking:
            self._loop.call_later(_TICK_S, self._tick)
        late = late_answers([arrival for arrival in expired if not arrival.is_answered])
        if late:
            self._answer(late)


def late_answers(arrivals: Sequence[Arrival]) -> list[Answer]:
    """What is answered at the deadline; those that were given the same time share one error."""
    errors: dict[int, DeadlineExceeded] = {}
    answers = []
    for arrival in arrivals:
        context = arrival.context
        if context.cancelled:
            answers.append(Answer(arrival, None, Cancelled("the client left")))
            continue
        allowed_ns = context.deadline.at_ns - context.arrived_ns
        error = errors.get(allowed_ns)
        if error is None:
            error = errors[allowed_ns] = DeadlineExceeded(f"no answer within the {allowed_ns / 1e6:.1f} ms allowed")
        answers.append(Answer(arrival, None, error))
    return answers
