"""Arrivals, ladders and listeners that the tests of batching and of the gate share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from serve.batching.arrival import Answer, Arrival, Decoded, Encoded, Route
from serve.batching.collector import Collector
from serve.batching.runner import Batch, Runner
from serve.budgets.deadline import Deadline
from serve.budgets.ladder import Ladder, Rung
from serve.context import RequestContext
from serve.errors import HeadroomError, InvalidInput

MS = 1_000_000
FAR_NS = 3_600_000 * MS


class LinearLadder(Ladder):
    """Predicts a fixed part and a part per item, times the rung's share: what a form test can reason about."""

    def __init__(self, *shares: float, fixed_ns: int = 0, item_ns: int = MS) -> None:
        super().__init__(tuple(Rung(f"rung {i}" if i else "", share) for i, share in enumerate(shares)))
        self._fixed_ns, self._item_ns = fixed_ns, item_ns

    def predict_ns(self, rung: int, items: int) -> int:
        return int((self._fixed_ns + self._item_ns * items) * self.rungs[rung].share)


class RecordingListener:
    """Keeps the answers; `failure` is raised instead when set."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.answers: list[Answer] = []
        self.num_replies = 0
        self.failure = failure

    def reply(self, answers: Sequence[Answer]) -> None:
        self.num_replies += 1
        if self.failure is not None:
            raise self.failure
        self.answers.extend(answers)

    def errors(self) -> list[HeadroomError | None]:
        return [answer.error for answer in self.answers]


class SilentMetrics:
    """Takes what a runner records."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.batches: list[int] = []

    def observe_batch(self, items: int) -> None:
        self.batches.append(items)

    def observe_stage(self, stage: str, duration_ns: int, items: int) -> None:
        self.stages.append((stage, items))

    def set_queue(self, waiting_items: int) -> None:
        assert waiting_items >= 0


class ListCodec:
    """The payload is a list of items; an exception in it is raised by `decode`. The answer is the outcomes' text."""

    endpoint = "list"

    def count_items(self, payload: Any) -> int:
        return len(payload)

    def timeout_us(self, payload: Any) -> int | None:
        return None

    def decode(self, payload: Any) -> Decoded:
        for item in payload:
            if isinstance(item, Exception) and not isinstance(item, HeadroomError):
                raise item
        if payload and payload[0] == "whole request is wrong":
            raise InvalidInput("the whole request is wrong", field="x")
        return Decoded(payload, len(payload))

    def encode(self, request: Any, outcomes: Sequence[Any]) -> Encoded:
        assert request == len(outcomes)
        if "cannot be encoded" in outcomes:
            raise ValueError("cannot be encoded")
        if "raises its error" in outcomes:
            raise InvalidInput("of the item", field="y")
        return Encoded(",".join(map(_text, outcomes)).encode())


def _text(outcome: Any) -> str:
    return f"{outcome.kind} error" if isinstance(outcome, HeadroomError) else str(outcome)


class CallFlow:
    """A flow of one function; remembers the sizes of the batches it was called with."""

    def __init__(
        self, call: Callable[[Sequence[Any], Batch], Sequence[Any]] = lambda items, batch: list(items)
    ) -> None:
        self._call = call
        self.batches: list[list[Any]] = []
        self.rungs: list[int] = []

    def run(self, items: Sequence[Any], batch: Batch) -> Sequence[Any]:
        self.batches.append(list(items))
        self.rungs.append(batch.rung)
        return self._call(items, batch)


def arrival(
    items: int = 1,
    *,
    left_ns: int = FAR_NS,
    now_ns: int = 0,
    payload: Any = None,
    listener: Any = None,
    collector: Any = None,
    codec: Any = None,
    cancelled: bool = False,
    is_answered: bool = False,
) -> Arrival:
    """An arrival of `items` with `left_ns` until its deadline, seen at `now_ns`."""
    context = RequestContext("id", Deadline(now_ns + left_ns), now_ns, cancelled=cancelled)
    route = Route(codec or ListCodec(), collector, 50.0, SilentMetrics(), "pipeline")
    return Arrival(context, payload, route, items, listener or RecordingListener(), None, is_answered)


class RunnerBench:
    """A runner, what feeds it and what it answers to."""

    def __init__(self, flow: CallFlow | None = None, ladder: Ladder | None = None, **options: Any) -> None:
        self.flow = flow or CallFlow()
        self.clock: Callable[[], int] = time.monotonic_ns
        self.metrics = SilentMetrics()
        self.listener = RecordingListener()
        self.collector = Collector("pipeline", max_items=options.pop("max_items", 1000))
        self.ladder = ladder or Ladder((Rung("", 1.0),))
        options.setdefault("max_batch_items", 8)
        self.runner = Runner(self.collector, self.flow, self.ladder, self.metrics, **options)

    def arrive(self, *payloads: Any, left_ns: int = FAR_NS, **options: Any) -> list[Arrival]:
        """Pushes one arrival per payload; those that were taken in."""
        now_ns = self.clock()
        options.setdefault("listener", self.listener)
        arrivals = [
            arrival(max(1, len(p)), left_ns=left_ns, now_ns=now_ns, payload=p, collector=self.collector, **options)
            for p in payloads
        ]
        assert self.collector.push(arrivals, now_ns) == []
        return arrivals

    def step(self, *payloads: Any, **options: Any) -> list[Arrival]:
        """Pushes, takes and runs one batch; what still waits."""
        self.arrive(*payloads, **options)
        return self.runner.step(self.collector.take_now(), self.runner.max_batch_items)

    def bodies(self) -> list[bytes | None]:
        """The answers' bodies in the order they were given, None for an error of the whole request."""
        return [None if a.encoded is None else a.encoded.body for a in self.listener.answers]
