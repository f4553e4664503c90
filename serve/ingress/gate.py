"""The gate between an event loop and the collectors, shared by the listeners.

Arrivals of one turn of the loop are pushed together, so a runner is woken once for all of them. Deadlines are kept by a
timing wheel: a request is answered on time although its batch still runs. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from serve.batching.arrival import Answer, Arrival, Route
from serve.budgets.wheel import TimingWheel
from serve.errors import Cancelled, DeadlineExceeded

_TICK_S = 0.001
_DELAY_TURNS = 2
"""A request may have waited for the turn before this one to end before anybody saw it, and its answer will wait for one."""

AnswerNow = Callable[[Sequence[Answer]], None]


class Gate:
    """`answer` is called, in the loop's thread, with what is refused or late; late ones may be answered already."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: AnswerNow) -> None:
        self._loop = loop
        self._answer = answer
        self._pushed: dict[int, tuple[Route, list[Arrival]]] = {}
        self._wheel: TimingWheel[Arrival] = TimingWheel(time.monotonic_ns())
        self._is_ticking = False

    def enter(self, arrival: Arrival) -> None:
        """Lets an arrival in with this turn's others."""
        if not self._pushed:
            self._loop.call_soon(self._push)
        self._pushed.setdefault(id(arrival.route), (arrival.route, []))[1].append(arrival)

    def _push(self) -> None:
        pushed, self._pushed = self._pushed, {}
        now_ns = time.monotonic_ns()
        delay_ns = _DELAY_TURNS * (now_ns - next(iter(pushed.values()))[1][0].context.arrived_ns)
        for route, arrivals in pushed.values():
            in_time = [one for one in arrivals if one.context.deadline.at_ns > now_ns]
            answers = [Answer(arrival, None, error) for arrival, error in route.collector.push(in_time, now_ns, delay_ns)]
            self._await(in_time, {id(answer.arrival) for answer in answers})
            if len(in_time) < len(arrivals):
                answers += [late_answer(one) for one in arrivals if one.context.deadline.at_ns <= now_ns]
            if answers:
                self._answer(answers)

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
        late = [late_answer(arrival) for arrival in expired if not arrival.is_answered]
        if late:
            self._answer(late)


def late_answer(arrival: Arrival) -> Answer:
    """What is answered at the deadline."""
    if arrival.context.cancelled:
        return Answer(arrival, None, Cancelled("the client left"))
    allowed_ms = (arrival.context.deadline.at_ns - arrival.context.arrived_ns) / 1e6
    return Answer(arrival, None, DeadlineExceeded(f"no answer within the {allowed_ms:.1f} ms allowed"))
