"""The published budgets beside what was measured: `GET /v2/budgets` as values.

In: the decoded JSON. Out: one PipelineBudget per pipeline. Called by the HTTP wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StageBudget:
    """One stage. A percentile is None while nothing was measured; a budget is None where none is published."""

    budget_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    count: int


@dataclass(frozen=True, slots=True)
class PipelineBudget:
    """One pipeline over the last `window_s` seconds: requests that met, missed, were degraded, were refused."""

    budget_ms: float
    window_s: float
    requests: int
    met: int
    missed: int
    degraded: int
    refused: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    stages: Mapping[str, StageBudget]


def parse_budgets(body: Mapping[str, Any]) -> dict[str, PipelineBudget]:
    """Pipelines by name. Unknown fields are ignored; raises KeyError or TypeError on another shape."""
    return {name: _pipeline(pipeline) for name, pipeline in body["pipelines"].items()}


def _pipeline(body: Mapping[str, Any]) -> PipelineBudget:
    stages = {name: StageBudget(**_known(StageBudget, stage)) for name, stage in body["stages"].items()}
    return PipelineBudget(**{**_known(PipelineBudget, body), "stages": stages})


def _known(cls: type[StageBudget | PipelineBudget], body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in cls.__match_args__}
