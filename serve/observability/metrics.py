"""What records the server's metrics.

Arrays of a batch's latencies, counts and states enter, from the listeners' and runners' threads, once per batch; they
stay in this process's metrics file. `Metrics.snapshot` gives the whole server's, for `/metrics` and `/v2/budgets`.
"""

from __future__ import annotations

import math
import platform
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Self, TypeVar

import numpy as np

from serve.observability.families import (
    BATCH_ITEMS,
    BUDGET,
    BUILD_INFO,
    CONNECTIONS,
    DEGRADED,
    FEATURE_PSI,
    IN_FLIGHT,
    LABELLED,
    LABELLED_STOPPED,
    MET,
    MISSED,
    OVERFLOW,
    QUALITY,
    QUEUE_ITEMS,
    REFUSALS,
    REFUSED,
    REJECTIONS,
    REQUEST_DURATION,
    REQUEST_WINDOW,
    REQUESTS,
    SCORE_DRIFT,
    SHADOW,
    SHADOW_DIFFERENCE,
    STAGE_DURATION,
    STAGE_WINDOW,
    STORE_EVENTS,
    STORE_STATE,
    TOTAL,
    Family,
)
from serve.observability.folder import MetricsFolder, Snapshot
from serve.observability.latency import LatencyRecorder
from serve.observability.shared import MetricsFile, Slots

METRICS_FOLDER: Final = "metrics"
"""Folder of the metrics files within a run folder."""

Clock = Callable[[], int]
P = ParamSpec("P")
R = TypeVar("R")


class Recorder:
    """Values of one metrics file. Its lock guards read-modify-write between threads; it is held for microseconds."""

    def __init__(self, file: MetricsFile, clock_ns: Clock) -> None:
        self._file = file
        self._clock_ns = clock_ns
        self._lock = threading.Lock()

    def _add(self, family: Family, labels: tuple[str, ...], amount: float) -> None:
        slot = self._slot(family, labels)
        if slot is not None:
            with self._lock:
                self._file.floats[slot] += amount

    def _set(self, family: Family, labels: tuple[str, ...], value: float) -> None:
        slot = self._slot(family, labels)
        if slot is not None:
            self._file.floats[slot] = value

    def _slot(self, family: Family, labels: tuple[str, ...]) -> int | None:
        slot = self._file.find(family.name, labels)
        return self._file.add(family.series(*labels)) if slot is None else slot

    def _slots(self, family: Family, labels: tuple[str, ...]) -> Slots:
        """The series' slots; of a full file, private ones that nobody reads."""
        slot = self._slot(family, labels)
        if slot is None:
            return np.zeros(family.num_slots, np.int64)
        return self._file.array[slot : slot + family.num_slots]

    def _cell(self, family: Family, labels: tuple[str, ...]) -> memoryview[float]:
        """The one value of a counter or gauge, or the sum of a histogram, kept at hand for a hot recorder."""
        return self._slots(family, labels)[:1].data.cast("B").cast("d")


_FEW = 8
"""So many latencies are added one by one: an array costs more."""


class PipelineMetrics(Recorder):
    """Records one pipeline's batches. Thread-safe; each call costs microseconds (`benchmarks/metrics_cost.py`)."""

    def __init__(self, file: MetricsFile, clock_ns: Clock, name: str, stages: Sequence[str]) -> None:
        super().__init__(file, clock_ns)
        self._labels = (name,)
        self._requests = LatencyRecorder(self._slots(REQUEST_DURATION, (name,)), self._slots(REQUEST_WINDOW, (name,)))
        self._stages = {
            stage: LatencyRecorder(self._slots(STAGE_DURATION, (name, stage)), self._slots(STAGE_WINDOW, (name, stage)))
            for stage in stages
        }
        self._batch_items, self._batches = self._cell(BATCH_ITEMS, (name,)), self._slots(BATCH_ITEMS, (name,)).data
        self._met, self._missed = self._cell(MET, (name,)), self._cell(MISSED, (name,))
        self._degraded, self._refused = self._cell(DEGRADED, (name,)), self._cell(REFUSED, (name,))
        self._queue_items = self._cell(QUEUE_ITEMS, (name,))

    def publish_budgets(self, budget_ms: float, stage_budgets_ms: Mapping[str, float]) -> None:
        """Sets the published budgets; a stage without one is reported without. Again when settings change."""
        self._set(BUDGET, (*self._labels, TOTAL), budget_ms / 1e3)
        for stage in self._stages:
            self._set(BUDGET, (*self._labels, stage), stage_budgets_ms.get(stage, math.nan) / 1e3)

    def observe_requests(self, latencies_ns: Sequence[int]) -> None:
        """Adds the end-to-end latencies of the answered requests of one batch."""
        now_ns = self._clock_ns()
        with self._lock:
            if len(latencies_ns) > _FEW:
                self._requests.add_many(np.array(latencies_ns, dtype=np.int64), now_ns)
                return
            for latency_ns in latencies_ns:
                self._requests.add_one(latency_ns, 1, now_ns)

    def observe_stage(self, stage: str, duration_ns: int, items: int) -> None:
        """Adds one stage of one batch: its time counts once for each of the `items` that spent it."""
        with self._lock:
            self._stages[stage].add_one(duration_ns, items, self._clock_ns())

    def count_outcomes(self, *, met: int = 0, missed: int = 0, degraded: int = 0, refused: int = 0) -> None:
        """Counts how requests ended: each is one of met, missed and refused; degraded is beside met or missed."""
        with self._lock:
            self._met[0] += met
            self._missed[0] += missed
            self._degraded[0] += degraded
            self._refused[0] += refused

    def count_refusals(self, reason: str, n: int = 1) -> None:
        """Counts refused requests by the bound or prediction that refused them."""
        self._add(REFUSALS, (*self._labels, reason), n)

    def observe_batch(self, items: int) -> None:
        """Adds the size of one executed batch."""
        with self._lock:
            self._batch_items[0] += items
            self._batches[1 + bisect_left(BATCH_ITEMS.bounds, items)] += 1

    def set_queue(self, waiting_items: int) -> None:
        """Sets how many items wait for the next batch."""
        self._queue_items[0] = waiting_items


class FraudMetrics(Recorder):
    """Records labels, drift and the version in shadow. Thread-safe."""

    def count_label(self, version: str, part: int, *, is_fraud: bool, is_stopped: bool, by: int) -> None:
        """Counts a label that was given (`by` 1) or taken back (-1)."""
        fraud, change = str(is_fraud).lower(), "given" if by > 0 else "taken_back"
        self._add(LABELLED, (version, str(part), fraud, change), 1)
        if is_stopped:
            self._add(LABELLED_STOPPED, (version, fraud, change), 1)

    def set_quality(self, measures: Mapping[str, float]) -> None:
        """Sets what labels say, by measure."""
        for name, value in measures.items():
            self._set(QUALITY, (name,), value)

    def set_drift(self, feature_psi: Mapping[str, float], score: Mapping[str, float]) -> None:
        """Sets distances from training, by feature, and of the score by measure."""
        for feature, value in feature_psi.items():
            self._set(FEATURE_PSI, (feature,), value)
        for measure, value in score.items():
            self._set(SCORE_DRIFT, (measure,), value)

    def count_shadow(
        self, versions: tuple[str, str], agreement: Mapping[tuple[str, str], int], absolute_difference: float
    ) -> None:
        """Counts transactions by (what served, what the shadow would have done), of the version that serves and the
        one in shadow.
        """
        for labels, n in agreement.items():
            self._add(SHADOW, (*versions, *labels), n)
        self._add(SHADOW_DIFFERENCE, versions, absolute_difference)


class Metrics(Recorder):
    """Records one replica process; `snapshot` sees all of them. Thread-safe."""

    def __init__(self, folder: MetricsFolder, file: MetricsFile, clock_ns: Clock = time.monotonic_ns) -> None:
        super().__init__(file, clock_ns)
        self._folder = folder
        self._pipelines: dict[str, PipelineMetrics] = {}

    @classmethod
    def open(cls, run_dir: Path, *, version: str, clock_ns: Clock = time.monotonic_ns) -> Self:
        """Opens this process's file under `run_dir`/metrics and folds the files of ended ones there."""
        folder = MetricsFolder(run_dir / METRICS_FOLDER)
        file = MetricsFile.create(folder.path, overflow=OVERFLOW.name)
        if file.name is not None:
            folder.fold()
        metrics = cls(folder, file, clock_ns)
        metrics._set(BUILD_INFO, (version, platform.python_version()), 1)
        return metrics

    def snapshot(self) -> Snapshot:
        """All replicas' metrics now: counters of ended processes included, their gauges not. Takes milliseconds."""
        return self._folder.read(self._clock_ns(), own=self._file)

    def close(self) -> None:
        """Ends recording; the counters stay in the run folder."""
        self._file.close()

    def pipeline(
        self,
        name: str,
        stages: Sequence[str],
        *,
        budget_ms: float,
        stage_budgets_ms: Mapping[str, float],
    ) -> PipelineMetrics:
        """The recorder of a pipeline, one and the same for a name; called again, it publishes the new budgets.

        Raises ValueError for a stage whose name stands for the whole pipeline.
        """
        if TOTAL in stages:
            raise ValueError(f"pipeline {name} has a stage {TOTAL!r}; that name stands for the whole pipeline")
        with self._lock:
            if name not in self._pipelines:
                self._pipelines[name] = PipelineMetrics(self._file, self._clock_ns, name, stages)
            pipeline = self._pipelines[name]
        pipeline.publish_budgets(budget_ms, stage_budgets_ms)
        return pipeline

    def recorder(self, make: Callable[Concatenate[MetricsFile, Clock, P], R], *args: P.args, **options: P.kwargs) -> R:
        """A recorder of another kind, which keeps its values in this process's file."""
        return make(self._file, self._clock_ns, *args, **options)

    def fraud(self) -> FraudMetrics:
        """The recorder of what the fraud pipeline watches beside its budget."""
        return FraudMetrics(self._file, self._clock_ns)

    def count_requests(self, protocol: str, endpoint: str, status: str, n: int = 1) -> None:
        """Counts answered requests; `endpoint` is a route's template, never a path as sent."""
        self._add(REQUESTS, (protocol, endpoint, status), n)

    def in_flight(self, protocol: str) -> memoryview[float]:
        """The number of requests of a protocol that were taken in and not yet answered: one value, which one thread, the
        protocol's, may change in place.
        """
        return self._cell(IN_FLIGHT, (protocol,))

    def set_connections(self, protocol: str, n: int) -> None:
        """Sets the number of open connections."""
        self._set(CONNECTIONS, (protocol,), n)

    def count_rejections(self, protocol: str, reason: str, n: int = 1) -> None:
        """Counts connections or requests turned away at the edge: connections, header, body, concurrency."""
        self._add(REJECTIONS, (protocol, reason), n)

    def count_store(self, event: str, n: int = 1) -> None:
        """Counts feature store events: commit, commit_failed, late_commit, breaker_open, …"""
        self._add(STORE_EVENTS, (event,), n)

    def set_store_state(self, name: str, value: float) -> None:
        """Sets a feature store state: breaker_open (0 or 1), bytes_used, …; the largest of all replicas is shown."""
        self._set(STORE_STATE, (name,), value)
