from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from serve.observability.budget_report import budget_report
from serve.observability.folder import MetricsFolder
from serve.observability.metrics import Metrics


def record(metrics: Metrics) -> None:
    pipeline = metrics.pipeline("fraud", ("fetch_features", "score"), budget_ms=50, stage_budgets_ms={"score": 10})
    pipeline.observe_requests(np.arange(1, 101) * 1_000_000)
    pipeline.observe_stage("score", 4_000_000, 64)
    pipeline.count_outcomes(met=90, missed=6, degraded=3, refused=4)


def within_four_percent(value: float) -> Any:
    return pytest.approx(value, rel=0.041)


def test_the_report_has_its_published_shape(tmp_path: Path) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    record(metrics)
    report = budget_report(metrics.snapshot())
    assert orjson.loads(orjson.dumps(report)) == {
        "pipelines": {
            "fraud": {
                "budget_ms": 50.0,
                "window_s": 60,
                "requests": 100,
                "met": 90,
                "missed": 6,
                "degraded": 3,
                "refused": 4,
                "p50_ms": within_four_percent(50),
                "p95_ms": within_four_percent(95),
                "p99_ms": within_four_percent(99),
                "stages": {
                    "fetch_features": {"budget_ms": None, "p50_ms": None, "p95_ms": None, "p99_ms": None, "count": 0},
                    "score": {
                        "budget_ms": 10.0,
                        "p50_ms": within_four_percent(4),
                        "p95_ms": within_four_percent(4),
                        "p99_ms": within_four_percent(4),
                        "count": 64,
                    },
                },
            }
        }
    }


def test_replicas_are_reported_as_one_and_a_dead_one_still_counts(
    tmp_path: Path, start_replica: Callable[[], Any]
) -> None:
    replicas = [start_replica(), start_replica()]
    for replica in replicas:
        replica.do(record)
    folder = MetricsFolder(tmp_path / "metrics")
    for num_alive in (2, 1):
        fraud = budget_report(folder.read(time.monotonic_ns()))["pipelines"]["fraud"]
        assert (fraud["requests"], fraud["met"], fraud["stages"]["score"]["count"]) == (200, 180, 128)
        assert fraud["p99_ms"] == within_four_percent(99)
        assert (fraud["budget_ms"], list(fraud["stages"])) == (50.0, ["fetch_features", "score"])
        replicas[num_alive - 1].kill()
    assert budget_report(folder.read(time.monotonic_ns())) == {"pipelines": {}}


def test_pipelines_are_listed_in_the_order_they_were_set_up(tmp_path: Path) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    for name in ("vision", "fraud", "text"):
        metrics.pipeline(name, (), budget_ms=50, stage_budgets_ms={})
    assert list(budget_report(metrics.snapshot())["pipelines"]) == ["vision", "fraud", "text"]
