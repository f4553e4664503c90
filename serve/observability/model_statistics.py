"""Triton's model statistics: cumulative counts and times of each version of a model, over all replicas.

Batches enter from the runners; `VersionTimes` leave for the protocol's messages. Tools read differences of these
(perf_analyzer's breakdown of a request is made of nothing else), so every duration counts a request once, with the time
that its batch took.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from serve.observability.families import LAST_INFERENCE, MODEL_BATCHES, MODEL_TIMES
from serve.observability.folder import Snapshot
from serve.observability.metrics import Clock, Recorder
from serve.observability.shared import MetricsFile

_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_INFERENCES, _EXECUTIONS, _FIRST_DURATION = 0, 1, 2
_FIRST_STAGE = _FIRST_DURATION + 2 * _DURATIONS.index("compute_input")
_MAX_SIZES = 64
"""Different batch sizes that are told apart; further ones count in the totals alone."""

VersionKey = tuple[str, str]


class CountAndTime(NamedTuple):
    """How often, and for how many nanoseconds together."""

    times: int
    ns: int


@dataclass(frozen=True, slots=True)
class VersionTimes:
    """Everything recorded of one version. `durations` are by Triton's names; `sizes` by rows: executions, and their time
    for input, inference and output.
    """

    name: str
    version: str
    last_ms: int
    num_inferences: int
    num_executions: int
    durations: dict[str, CountAndTime]
    sizes: dict[int, tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """What one batch's requests came to: how many and for how long, in nanoseconds; stages once for the batch."""

    num_ok: int
    ok_ns: int
    queue_ns: int
    num_failed: int
    failed_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


class ModelStatistics(Recorder):
    """Records one version. Thread-safe; a call costs microseconds, once per batch."""

    def __init__(self, file: MetricsFile, clock_ns: Clock, name: str, version: str) -> None:
        super().__init__(file, clock_ns)
        self._labels = (name, version)
        self._totals = self._slots(MODEL_TIMES, self._labels).data
        self._last = self._cell(LAST_INFERENCE, self._labels)
        self._sizes: dict[int, memoryview[int]] = {}

    def observe(self, times: BatchTimes, executions: Collection[tuple[int, int]], now_ms: int) -> None:
        """Adds a batch. `executions`: rows of each run of the model, and how often it ran with so many."""
        ok = times.num_ok
        stages = times.input_ns, times.infer_ns, times.output_ns
        with self._lock:  # number by number: an array costs more
            totals = self._totals
            for at, n in enumerate((ok, times.ok_ns, times.num_failed, times.failed_ns, ok, times.queue_ns)):
                totals[_FIRST_DURATION + at] += n
            for at, ns in enumerate(stages):
                totals[_FIRST_STAGE + 2 * at] += ok
                totals[_FIRST_STAGE + 2 * at + 1] += ok * ns
            self._last[0] = now_ms
            share = max(1, len(executions))
            for rows, n in executions:
                totals[_INFERENCES] += rows * n
                totals[_EXECUTIONS] += n
                slots = self._size(rows)
                if slots is not None:
                    slots[0] += n
                    for at, ns in enumerate(stages):
                        slots[1 + at] += n * ns // share

    def _size(self, rows: int) -> memoryview[int] | None:
        slots = self._sizes.get(rows)
        if slots is None and len(self._sizes) < _MAX_SIZES:
            slots = self._sizes[rows] = self._slots(MODEL_BATCHES, (*self._labels, str(rows))).data
        return slots


def version_times(snapshot: Snapshot, wanted: Iterable[VersionKey]) -> list[VersionTimes]:
    """What was recorded of these versions, in their order; zeros where nothing was."""
    totals = snapshot.slots_of(MODEL_TIMES.name, MODEL_TIMES.num_slots)
    batches = snapshot.slots_of(MODEL_BATCHES.name, MODEL_BATCHES.num_slots)
    last = snapshot.values_of(LAST_INFERENCE.name)
    found = []
    for key in wanted:
        slots = totals.get(key)
        numbers = [0] * MODEL_TIMES.num_slots if slots is None else [int(n) for n in slots]
        pairs = zip(numbers[_FIRST_DURATION::2], numbers[_FIRST_DURATION + 1 :: 2], strict=True)
        durations = {name: CountAndTime(*pair) for name, pair in zip(_DURATIONS, pairs, strict=True)}
        sizes = sorted((int(labels[2]), slots) for labels, slots in batches.items() if labels[:2] == key)
        found.append(
            VersionTimes(
                *key, int(last.get(key, 0)), numbers[_INFERENCES], numbers[_EXECUTIONS], durations,
                {rows: (int(of[0]), int(of[1]), int(of[2]), int(of[3])) for rows, of in sizes},
            )
        )  # fmt: skip
    return found
