"""What `GET /v2/budgets` answers: a snapshot of all replicas' metrics enters, measured beside budget leaves.

Counts are since the run folder was made, over restarts; percentiles are of the last `window_s` seconds. Listed are the
pipelines that a live replica serves.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from serve.observability.families import (
    BUDGET,
    DEGRADED,
    MET,
    MISSED,
    REFUSED,
    REQUEST_WINDOW,
    STAGE_DURATION,
    STAGE_WINDOW,
    TOTAL,
    Family,
)
from serve.observability.folder import Snapshot
from serve.observability.latency import WINDOW_S, quantile_ns, window_counts
from serve.observability.shared import Slots


class Percentiles(TypedDict):
    """Of the last `window_s` seconds, in milliseconds, within 4 %; None when nothing was measured in them."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class StageReport(Percentiles):
    """One stage; `count` items went through it. `budget_ms` is None for a stage without a published budget."""

    budget_ms: float | None
    count: int


class PipelineReport(Percentiles):
    """One pipeline; `requests` is met + missed + refused, and `degraded` says how many of those were."""

    budget_ms: float
    window_s: int
    requests: int
    met: int
    missed: int
    degraded: int
    refused: int
    stages: dict[str, StageReport]


class BudgetReport(TypedDict):
    """The body of `GET /v2/budgets`."""

    pipelines: dict[str, PipelineReport]


def budget_report(snapshot: Snapshot) -> BudgetReport:
    """Measured against budget, per pipeline and stage, in the order in which they were set up."""
    budgets_s = snapshot.values_of(BUDGET.name)
    pipelines = [pipeline for pipeline, stage in budgets_s if stage == TOTAL]
    return {"pipelines": {name: _pipeline_report(snapshot, name, budgets_s) for name in pipelines}}


def _pipeline_report(snapshot: Snapshot, name: str, budgets_s: dict[tuple[str, ...], float]) -> PipelineReport:
    met, missed, degraded, refused = (_count(snapshot, family, name) for family in (MET, MISSED, DEGRADED, REFUSED))
    stages = [stage for pipeline, stage in budgets_s if pipeline == name and stage != TOTAL]
    return {
        "budget_ms": _ms(budgets_s[name, TOTAL]),
        "window_s": WINDOW_S,
        "requests": met + missed + refused,
        "met": met,
        "missed": missed,
        "degraded": degraded,
        "refused": refused,
        **_percentiles(snapshot, REQUEST_WINDOW, (name,)),
        "stages": {stage: _stage_report(snapshot, (name, stage), budgets_s[name, stage]) for stage in stages},
    }


def _stage_report(snapshot: Snapshot, labels: tuple[str, str], budget_s: float) -> StageReport:
    durations = _slots(snapshot, STAGE_DURATION, labels)
    return {
        "budget_ms": None if math.isnan(budget_s) else _ms(budget_s),
        **_percentiles(snapshot, STAGE_WINDOW, labels),
        "count": int(durations[1:].sum()),
    }


def _percentiles(snapshot: Snapshot, family: Family, labels: tuple[str, ...]) -> Percentiles:
    counts = window_counts(_slots(snapshot, family, labels), snapshot.taken_ns)
    p50, p95, p99 = (quantile_ns(counts, quantile) for quantile in (0.5, 0.95, 0.99))
    return {"p50_ms": _optional_ms(p50), "p95_ms": _optional_ms(p95), "p99_ms": _optional_ms(p99)}


def _count(snapshot: Snapshot, family: Family, pipeline: str) -> int:
    return int(_slots(snapshot, family, (pipeline,)).view(np.float64)[0])


def _slots(snapshot: Snapshot, family: Family, labels: tuple[str, ...]) -> Slots:
    found = snapshot.series.get(family.series(*labels))
    return np.zeros(family.num_slots, np.int64) if found is None else found


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 6)


def _optional_ms(duration_ns: float | None) -> float | None:
    return None if duration_ns is None else round(duration_ns / 1e6, 4)
