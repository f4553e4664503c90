"""The runner: turns what waits into batches, runs the flow, and sends the answers back.

A short batch runs on the thread of the listener that dispatches it: to hand it to another costs two wake-ups, and then
both threads fight for the interpreter for as long as it runs (at 16 connections half of the throughput). A longer one
runs on the runner's own thread, so that no listener is kept from its sockets.

Hot: what is here is paid per batch (and a few list operations per request); see benchmarks/fraud.py for the shares.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve.batching.accounts import BatchAccounts
from serve.batching.arrival import Answer, Arrival, Decoded, Listener
from serve.batching.collector import Collector
from serve.batching.forming import Formed, form
from serve.batching.outcome import Outcome
from serve.budgets.estimate import BatchEstimate
from serve.budgets.ladder import Ladder
from serve.budgets.timings import Timings, server_timing
from serve.errors import HeadroomError, Internal, NotReady, Overloaded
from serve.observability.metrics import PipelineMetrics

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """What a flow is given beside the items: the rung they run on, who asks, and where to write the times."""

    rung: int
    rung_name: str
    deadline_ns: int
    """The tightest among the members."""
    timings: Timings
    runs: list[int] = field(default_factory=list)
    """Rows of each run of a model, from a flow that may need several."""


class Flow(Protocol):
    """A pipeline's stages over a whole batch. One thread at a time, unless more batches may be in flight."""

    def run(self, items: Sequence[Any], batch: Batch) -> Sequence[Outcome[Any]]:
        """One outcome per item, in order. May raise: the runner then finds the item that is to blame."""
        ...


_MAX_HERE_NS = 8_000_000
"""For how long, as predicted, a batch may keep a listener's thread from its sockets and timers."""

_TRIAL_EVERY = 16
_PACE_WEIGHT = 0.1
_MIN_SHARE = 4
"""A batch of a queue is at least a quarter of the largest."""
_MAX_STRETCH = 1.5
"""How much of a cycle beyond the batch itself counts. All of it would feed on itself: who is refused and comes back at
once makes cycles longer, and longer cycles refuse more.
"""


class Runner:
    """Owns one thread per batch in flight; `start` begins, `stop` ends after what was accepted has been answered.

    Implements `Entrance` on its collector. Listeners' threads run short batches themselves where one batch is in flight
    at a time.
    """

    def __init__(
        self,
        collector: Collector,
        flow: Flow,
        ladder: Ladder,
        metrics: PipelineMetrics,
        *,
        max_batch_items: int,
        max_batches_in_flight: int = 1,
        waits_elsewhere: bool = False,
        accounts: BatchAccounts | None = None,
    ) -> None:
        """`waits_elsewhere`: the flow waits for a network, which no listener's thread should."""
        self.collector = collector
        self.max_batch_items = max_batch_items
        self._flow = flow
        self._ladder = ladder
        self._metrics = metrics
        self._accounts = accounts
        self._ns_per_item = 0.0
        """What an item costs while others wait, with all that a listener reads and refuses in between."""
        self._kept_waiting_ns = 0
        """Since when somebody has waited for the next batch; 0 if nobody does."""
        self._num_here = 0
        self._cpu_time = BatchEstimate(q=0.5)
        """Of the thread that ran it: what a batch takes by the clock grows with whoever else wants the interpreter, and
        would keep batches on another thread because they are on another thread.
        """
        self._runs_here = max_batches_in_flight == 1 and not waits_elsewhere
        self._again: Callable[[], None] | None = None
        """Has the listener that left a long batch to the thread dispatch once more; belongs to the turn's holder."""
        self._turn = threading.Lock()  # whose holder runs batches, where one is in flight at a time
        self._threads = [
            threading.Thread(target=self._loop, name=f"runner-{collector.name}-{i}", daemon=True)
            for i in range(max_batches_in_flight)
        ]

    def start(self) -> None:
        """Begins to take."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Closes the collector and waits until everything in it has been answered, at most `timeout_s`."""
        self.collector.close()
        give_up_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))

    def push(self, arrivals: Sequence[Arrival], now_ns: int) -> list[tuple[Arrival, Overloaded | NotReady]]:
        """Takes in what fits and returns the rest, each with its named reason."""
        return self.collector.push(arrivals, now_ns)

    def room(self, budget_ms: float) -> tuple[int, int]:
        """A batch, unless one waits already; and what the collector would take in."""
        largest = self.max_batch_items
        return (largest if self.collector.num_items < largest else 0), self.collector.bound(budget_ms)

    def dispatch(self, again: Callable[[], None] | None) -> bool:
        """Runs one batch here and now if it is predicted to be short, or wakes a thread; whether to call again."""
        if again is not None and self._runs_here and self._turn.acquire(blocking=False):
            try:
                waiting = self.collector.take_now()
                if not waiting:
                    return False
                max_items = self._max_items_here()
                if waiting[0].items <= max_items:
                    self.collector.put_back(self._step_safely(waiting, max_items))
                    return self.collector.is_anyone_waiting
                self.collector.put_back(waiting)
                self._again = again
            finally:
                self._turn.release()
        return self.collector.dispatch()

    def _max_items_here(self) -> int:
        """The largest batch that is predicted to be short; 0 if none is. Now and then twice that, up to the largest
        allowed: a prediction that keeps batches from running would never be corrected.
        """
        items = self.max_batch_items
        while items and self._cpu_time.predict_ns(items) > _MAX_HERE_NS:
            items //= 2
        self._num_here += 1
        if self._num_here % _TRIAL_EVERY == 0:
            items = min(max(1, 2 * items), self.max_batch_items)
        return items

    def _loop(self) -> None:
        while (waiting := self.collector.take()) is not None:
            if not self._runs_here:
                self._run_all(waiting)
                continue
            with self._turn:
                self._run_all(waiting)
                again, self._again = self._again, None
            if again is not None:
                again()

    def _run_all(self, waiting: list[Arrival]) -> None:
        """All that waits, or up to where it is short enough for the listener that had this thread woken."""
        while waiting:
            waiting = self._step_safely(waiting, self.max_batch_items) + self.collector.take_now()
            if waiting and self._again is not None and waiting[0].items <= self._max_items_here():
                self.collector.put_back(waiting)
                return

    def _step_safely(self, waiting: list[Arrival], max_items: int) -> list[Arrival]:
        try:
            return self.step(waiting, max_items)
        except Exception:
            log.exception("runner of %s failed outside the flow; its batch is not answered", self.collector.name)
            self.collector.done(sum(a.items for a in waiting))
            return []

    def step(self, waiting: list[Arrival], max_items: int) -> list[Arrival]:
        """Forms, runs and answers one batch of at most `max_items` out of `waiting`; returns those that still wait."""
        now_ns = time.monotonic_ns()
        formed = form(waiting, now_ns, self._ladder, max_items)
        gone = sum(a.items for a in formed.dropped)
        if formed.refused:
            gone += sum(a.items for a in formed.refused)
            _reply([self._refusal(a, now_ns) for a in formed.refused])
        if formed.run:
            num_items = formed.num_items
            began_cpu_ns = time.thread_time_ns()
            if self._run(formed.run, formed.rung, now_ns):
                self._ladder.observe(formed.rung, num_items, time.monotonic_ns() - now_ns)
                self._cpu_time.observe(num_items, time.thread_time_ns() - began_cpu_ns)
            self._metrics.observe_batch(num_items)
            gone += num_items
        self._observe_pace(now_ns, formed, max_items)
        self.collector.done(gone, self._ns_per_item, max_items)
        self._metrics.set_queue(self.collector.num_items)
        return formed.later

    def _observe_pace(self, began_ns: int, formed: Formed, max_items: int) -> None:
        """Follows the mean: a queue's wait is the sum of many batches. A small batch, or one that nobody waited for, can
        only show that an item costs less: what it costs per item is mostly the batch.
        """
        ended_ns = time.monotonic_ns()
        cycle_ns = ended_ns - (self._kept_waiting_ns or began_ns)
        took_ns = min(cycle_ns, _MAX_STRETCH * (ended_ns - began_ns)) / max(1, formed.num_items)
        if not self._ns_per_item:
            self._ns_per_item = self._ladder.predict_ns(0, max_items) / max_items
        is_of_a_queue = self._kept_waiting_ns > 0 and formed.num_items * _MIN_SHARE >= max_items
        if formed.run and (is_of_a_queue or took_ns < self._ns_per_item):
            self._ns_per_item += _PACE_WEIGHT * (took_ns - self._ns_per_item)
        self._kept_waiting_ns = ended_ns if formed.later or self.collector.is_anyone_waiting else 0

    def _refusal(self, arrival: Arrival, now_ns: int) -> Answer:
        left_ms = arrival.context.deadline.remaining_ms(now_ns)
        error = Overloaded(
            f"{left_ms:.1f} ms are left and no rung of pipeline {self.collector.name} is predicted to fit; retry later",
            reason="budget",
        )
        return Answer(arrival, None, error, now_ns - arrival.context.arrived_ns)

    def _run(self, arrivals: list[Arrival], rung: int, now_ns: int) -> bool:
        """Answers them; whether the flow ran."""
        timings = Timings()
        timings.start()
        answers: list[Answer] = []
        items: list[Any] = []
        slots: list[tuple[Arrival, Decoded]] = []
        for arrival in arrivals:
            payload = arrival.payload
            if arrival.is_answered:
                continue
            try:
                decoded = arrival.route.codec.decode(payload)
            except HeadroomError as error:
                answers.append(Answer(arrival, None, error, now_ns - arrival.context.arrived_ns))
                continue
            except Exception:
                log.exception("decoding failed", extra={"request_id": arrival.context.request_id})
                answers.append(Answer(arrival, None, Internal(), now_ns - arrival.context.arrived_ns))
                continue
            slots.append((arrival, decoded))
            items.extend(item for item in decoded.items if not isinstance(item, HeadroomError))
        timings.end("decode")
        deadline_ns = min(a.context.deadline.at_ns for a in arrivals)
        batch = Batch(rung, self._ladder.name(rung), deadline_ns, timings)
        results = iter(run_isolated(self._flow, items, batch) if items else ())
        timings.start()
        stages = server_timing(timings.stages_ns)
        for arrival, decoded in slots:
            outcomes = [item if isinstance(item, HeadroomError) else next(results) for item in decoded.items]
            answers.append(_encode(arrival, decoded.request, outcomes, stages, now_ns))
        timings.end("encode")
        _reply(answers)
        for stage, duration_ns in timings.stages_ns.items():
            self._metrics.observe_stage(stage, duration_ns, len(items))
        if self._accounts is not None:
            self._accounts.observe(answers, timings.stages_ns, batch.runs, len(items), time.monotonic_ns())
        return bool(items)


def run_isolated(flow: Flow, items: Sequence[Any], batch: Batch) -> Sequence[Outcome[Any]]:
    """Runs the flow; when it raises, halves the batch until the item that is to blame is alone with its error."""
    try:
        outcomes = flow.run(items, batch)
        if len(outcomes) != len(items):
            raise ValueError(f"{len(outcomes)} outcomes for {len(items)} items")
        return outcomes
    except HeadroomError as error:
        if len(items) == 1:
            return [error]
    except Exception:
        log.exception("the flow failed on a batch of %d", len(items))
        if len(items) == 1:
            return [Internal()]
    half = len(items) // 2
    return [*run_isolated(flow, items[:half], batch), *run_isolated(flow, items[half:], batch)]


def _encode(arrival: Arrival, request: Any, outcomes: Sequence[Outcome[Any]], stages: str, now_ns: int) -> Answer:
    queue_ns = now_ns - arrival.context.arrived_ns
    degraded = _degraded(outcomes)
    try:
        encoded = arrival.route.codec.encode(request, outcomes)
    except HeadroomError as error:
        return Answer(arrival, None, error, queue_ns, stages)
    except Exception:
        log.exception("encoding failed", extra={"request_id": arrival.context.request_id})
        return Answer(arrival, None, Internal(), queue_ns, stages)
    return Answer(arrival, encoded, None, queue_ns, stages, degraded)


def _degraded(outcomes: Sequence[Outcome[Any]]) -> tuple[str, ...]:
    """What any of the outcomes says was left out; results without such a field leave nothing out."""
    names = {name for outcome in outcomes for name in getattr(outcome, "degraded", ())}
    return tuple(sorted(names)) if names else ()


def _reply(answers: Sequence[Answer]) -> None:
    by_listener: dict[int, tuple[Listener, list[Answer]]] = {}
    for answer in answers:
        listener = answer.arrival.listener
        by_listener.setdefault(id(listener), (listener, []))[1].append(answer)
    for listener, group in by_listener.values():
        try:
            listener.reply(group)
        except Exception:
            log.exception("a listener took no answers")
