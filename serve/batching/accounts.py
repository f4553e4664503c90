"""What a batch came to, for the model statistics: of the pipeline or model itself, and of the models it is made of.

Called by the runner once per batch, after its answers have been sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from serve.batching.arrival import Answer
from serve.observability.model_statistics import BatchTimes, ModelStatistics

_INPUT, _OUTPUT = "decode", "encode"


class BatchAccounts:
    """`steps`: the models that a pipeline asks, by the stage in which it does; each sees every item once."""

    def __init__(self, own: ModelStatistics, steps: Mapping[str, ModelStatistics] | None = None) -> None:
        self._own = own
        self._steps = steps or {}

    def observe(
        self,
        answers: Sequence[Answer],
        stages_ns: Mapping[str, int],
        runs: Sequence[int],
        num_items: int,
        ended_ns: int,
    ) -> None:
        """`runs`: rows of each run of the model, where the flow says; else it ran once, with every item."""
        now_ms = time.time_ns() // 1_000_000
        good = [answer for answer in answers if answer.error is None]
        bad = [answer for answer in answers if answer.error is not None] if len(good) < len(answers) else ()
        queue_ns = sum([answer.queue_ns for answer in good])
        input_ns, output_ns = stages_ns.get(_INPUT, 0), stages_ns.get(_OUTPUT, 0)
        infer_ns = sum(stages_ns.values()) - input_ns - output_ns
        times = BatchTimes(
            len(good), _total_ns(good, ended_ns), queue_ns, len(bad), _total_ns(bad, ended_ns),
            input_ns, infer_ns, output_ns,
        )  # fmt: skip
        self._own.observe(times, _counted(runs, num_items), now_ms)
        for stage, statistics in self._steps.items():
            took_ns = stages_ns.get(stage)
            if took_ns is not None:
                step = BatchTimes(len(good), len(good) * took_ns, 0, 0, 0, 0, took_ns, 0)
                statistics.observe(step, ((num_items, 1),), now_ms)


def _counted(runs: Sequence[int], num_items: int) -> Collection[tuple[int, int]]:
    """How often the model ran with how many rows."""
    if len(runs) > 1:
        return Counter(runs).items()
    return ((runs[0] if runs else num_items, 1),) if num_items else ()


def _total_ns(answers: Sequence[Answer], ended_ns: int) -> int:
    return sum([ended_ns - answer.arrival.context.arrived_ns for answer in answers])
