"""What does recording cost a hot thread, per call?

Target: `observe_requests` of 64 latencies ≤ 15 µs, every other recording ≤ 3 µs, an access entry handed over ≤ 1 µs.
Prints JSON: the best of 7 rounds per call in microseconds, and what one `/metrics` answer takes in milliseconds.

    python -m benchmarks.metrics_cost
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serve.observability import AccessEntry, AccessLog, Metrics, budget_report, render

ROUNDS, CALLS = 7, 5_000
STAGES = ("fetch_features", "assemble_row", "score", "explain", "decide")


def cost_us(call: Callable[[], object], calls: int = CALLS) -> float:
    return round(min(timeit.repeat(call, number=calls, repeat=ROUNDS)) / calls * 1e6, 3)


def recording_costs_us(metrics: Metrics) -> dict[str, float]:
    pipeline = metrics.pipeline("fraud", STAGES, budget_ms=50, stage_budgets_ms={})
    latencies_ns = np.random.default_rng(0).lognormal(15, 0.5, 64).astype(np.int64)
    return {
        "observe_requests(64)": cost_us(lambda: pipeline.observe_requests(latencies_ns)),
        "observe_stage": cost_us(lambda: pipeline.observe_stage("score", 2_000_000, 64)),
        "count_outcomes": cost_us(lambda: pipeline.count_outcomes(met=60, missed=2, degraded=1, refused=2)),
        "count_refusals": cost_us(lambda: pipeline.count_refusals("budget")),
        "observe_batch": cost_us(lambda: pipeline.observe_batch(64)),
        "set_queue": cost_us(lambda: pipeline.set_queue(3)),
        "count_requests": cost_us(lambda: metrics.count_requests("http", "/v1/fraud/score", "200", 64)),
        "count_store": cost_us(lambda: metrics.count_store("commit")),
    }


def entry() -> AccessEntry:
    return AccessEntry(
        request_id="r", protocol="http", endpoint="/v1/fraud/score", status="200", duration_ns=1, pipeline="fraud"
    )


def access_costs_us(folder: Path) -> dict[str, float]:
    log = AccessLog(folder / "access.log")
    log.start()
    batch = [entry()] * 64
    handed_over = cost_us(lambda: log.record(batch), calls=50) / len(batch)
    log.close()
    return {"AccessEntry(...)": cost_us(entry), "record, per entry of 64": round(handed_over, 3)}


def answering_costs_ms(metrics: Metrics) -> dict[str, float]:
    for number in range(20):
        metrics.pipeline(f"pipeline-{number}", STAGES, budget_ms=50, stage_budgets_ms={})
    costs = {}
    for name, answer in {"/metrics": render, "/v2/budgets": budget_report}.items():
        started = time.perf_counter()
        answer(metrics.snapshot())
        costs[name] = round((time.perf_counter() - started) * 1e3, 2)
    return costs


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics.open(Path(folder), version="benchmark")
        results = {
            "machine": platform.platform(),
            "python": platform.python_version(),
            "recording_us": recording_costs_us(metrics),
            "access_log_us": access_costs_us(Path(folder)),
            "answering_ms, 21 pipelines": answering_costs_ms(metrics),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
