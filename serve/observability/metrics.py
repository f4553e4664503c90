"""Every metric of the server, and what records them.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from serve.observability.folder import MetricsFolder, Snapshot
from serve.observability.latency import BOUNDS_NS, PUBLISHED_MS, WINDOW_SLOTS, LatencyRecorder
from serve.observability.shared import Kind, MetricsFile, Series, Slots


@dataclass(frozen=True, slots=True)
class Family:
    """A metric; labels come from closed sets. `bounds` are a histogram's stored buckets, `published` those shown."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()
    published: tuple[float, ...] = ()

    @property
    def num_slots(self) -> int:
        """Slots of one series: a histogram's are its sum, then a count per bucket, the last one above all bounds."""
        if self.kind is Kind.WINDOW:
            return WINDOW_SLOTS
        return 2 + len(self.bounds) if self.kind is Kind.HISTOGRAM else 1

    def series(self, *labels: str) -> Series:
        """The series with these label values, in the order of `labels`."""
        return Series(self.kind, self.name, labels, self.num_slots)


_FINE_S: Final = tuple((BOUNDS_NS / 1e9).tolist())
_STAGE_S: Final = tuple(ms / 1e3 for ms in PUBLISHED_MS)
_REQUEST_S: Final = tuple(s for s in _STAGE_S if s >= 0.0005)
_BATCH_ITEMS: Final = tuple(float(2**power) for power in range(13))

TOTAL: Final = "total"
"""Value of the `stage` label for a pipeline's whole budget; no stage may be called so."""

_PIPELINE, _STAGE = ("pipeline",), ("pipeline", "stage")

REQUESTS: Final = Family(
    "headroom_requests_total",
    Kind.COUNTER,
    ("protocol", "endpoint", "status"),
    "Requests answered, by protocol, endpoint and status.",
)
REQUEST_DURATION: Final = Family(
    "headroom_request_duration_seconds",
    Kind.HISTOGRAM,
    _PIPELINE,
    "Time from a request's arrival to its answer.",
    _FINE_S,
    _REQUEST_S,
)
STAGE_DURATION: Final = Family(
    "headroom_stage_duration_seconds",
    Kind.HISTOGRAM,
    _STAGE,
    "Time an item spent in a stage: that of its batch.",
    _FINE_S,
    _STAGE_S,
)
IN_FLIGHT: Final = Family(
    "headroom_requests_in_flight", Kind.GAUGE_SUM, ("protocol",), "Requests taken and not yet answered."
)
MET: Final = Family("headroom_budget_met_total", Kind.COUNTER, _PIPELINE, "Requests answered within their budget.")
MISSED: Final = Family(
    "headroom_budget_missed_total", Kind.COUNTER, _PIPELINE, "Requests answered late, or not at all."
)
DEGRADED: Final = Family(
    "headroom_budget_degraded_total", Kind.COUNTER, _PIPELINE, "Requests answered from a lower rung of the ladder."
)
REFUSED: Final = Family(
    "headroom_budget_refused_total", Kind.COUNTER, _PIPELINE, "Requests refused before their work began."
)
BUDGET: Final = Family(
    "headroom_budget_seconds",
    Kind.GAUGE_MAX,
    _STAGE,
    f"Published budget of a stage; the whole pipeline's is that of stage {TOTAL}.",
)
BATCH_ITEMS: Final = Family(
    "headroom_batch_items", Kind.HISTOGRAM, _PIPELINE, "Items per executed batch.", _BATCH_ITEMS, _BATCH_ITEMS
)
QUEUE_ITEMS: Final = Family("headroom_queue_items", Kind.GAUGE_SUM, _PIPELINE, "Items waiting for the next batch.")
REFUSALS: Final = Family("headroom_refusals_total", Kind.COUNTER, ("pipeline", "reason"), "Refused requests by reason.")
REJECTIONS: Final = Family(
    "headroom_rejections_total",
    Kind.COUNTER,
    ("protocol", "reason"),
    "Connections and requests turned away at the edge by a bound, by reason.",
)
CONNECTIONS: Final = Family("headroom_connections", Kind.GAUGE_SUM, ("protocol",), "Open client connections.")
STORE_EVENTS: Final = Family("headroom_store_events_total", Kind.COUNTER, ("event",), "Feature store events.")
STORE_STATE: Final = Family(
    "headroom_store_state", Kind.GAUGE_MAX, ("name",), "Feature store states; the largest of all replicas."
)
OVERFLOW: Final = Family(
    "headroom_metrics_overflow_total", Kind.COUNTER, (), "Recordings lost because a metrics file was full."
)
BUILD_INFO: Final = Family("headroom_build_info", Kind.GAUGE_MAX, ("version", "python"), "Versions of live replicas.")

FAMILIES: Final = (
    *(REQUESTS, REQUEST_DURATION, STAGE_DURATION, IN_FLIGHT, MET, MISSED, DEGRADED, REFUSED, BUDGET, BATCH_ITEMS),
    *(QUEUE_ITEMS, REFUSALS, REJECTIONS, CONNECTIONS, STORE_EVENTS, STORE_STATE, OVERFLOW, BUILD_INFO),
)
"""What Prometheus is shown, in this order."""

REQUEST_WINDOW: Final = Family("headroom_request_window", Kind.WINDOW, _PIPELINE, "Last minute of request durations.")
STAGE_WINDOW: Final = Family("headroom_stage_window", Kind.WINDOW, _STAGE, "Last minute of stage durations.")

METRICS_FOLDER: Final = "metrics"
"""Folder of the metrics files within a run folder."""

Clock = Callable[[], int]


class _Recorder:
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


class PipelineMetrics(_Recorder):
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

    def observe_requests(self, latencies_ns: npt.NDArray[np.int64]) -> None:
        """Adds the end-to-end latencies, int64 [n], of the answered requests of one batch."""
        if len(latencies_ns) == 0:
            return
        with self._lock:
            self._requests.add_many(latencies_ns, self._clock_ns())

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


class Metrics(_Recorder):
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
