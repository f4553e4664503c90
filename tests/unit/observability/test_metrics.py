from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serve.observability.families import (
    BATCH_ITEMS,
    BUILD_INFO,
    DEGRADED,
    FAMILIES,
    IN_FLIGHT,
    MET,
    MISSED,
    OVERFLOW,
    REFUSALS,
    REFUSED,
    REJECTIONS,
    REQUEST_DURATION,
    REQUESTS,
    STAGE_DURATION,
    STAGE_WINDOW,
    STORE_EVENTS,
)
from serve.observability.latency import SLICE_NS, window_counts
from serve.observability.metrics import Metrics, PipelineMetrics
from serve.observability.shared import Kind, Series


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics.open(tmp_path, version="1.2.3")


def fraud(metrics: Metrics) -> PipelineMetrics:
    return metrics.pipeline("fraud", ("score", "decide"), budget_ms=50, stage_budgets_ms={"score": 10})


def test_metric_names_are_prometheus_names_of_this_server() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"headroom_[a-z_]+", family.name)
        assert (family.kind is Kind.COUNTER) == family.name.endswith("_total")
        assert set(family.published) <= set(family.bounds)


def test_each_recording_is_read_back_under_its_labels(metrics: Metrics) -> None:
    metrics.count_requests("http", "/v1/fraud/score", "200", 3)
    metrics.count_requests("http", "/v1/fraud/score", "429")
    metrics.in_flight("grpc")[0] += 5
    metrics.in_flight("grpc")[0] -= 2
    metrics.count_rejections("http", "body", 2)
    metrics.count_store("commit", 4)
    fraud(metrics).count_refusals("budget", 6)
    values_of = metrics.snapshot().values_of
    assert values_of(REQUESTS.name) == {
        ("http", "/v1/fraud/score", "200"): 3,
        ("http", "/v1/fraud/score", "429"): 1,
    }
    assert values_of(IN_FLIGHT.name) == {("grpc",): 3}
    assert values_of(REJECTIONS.name) == {("http", "body"): 2}
    assert values_of(STORE_EVENTS.name) == {("commit",): 4}
    assert values_of(REFUSALS.name) == {("fraud", "budget"): 6}
    assert [labels[0] for labels in values_of(BUILD_INFO.name)] == ["1.2.3"]


def test_outcomes_add_up(metrics: Metrics) -> None:
    fraud(metrics).count_outcomes(met=3, missed=1, degraded=2)
    fraud(metrics).count_outcomes(met=1, refused=4)
    values_of = metrics.snapshot().values_of
    assert [values_of(family.name)["fraud",] for family in (MET, MISSED, DEGRADED, REFUSED)] == [4, 1, 2, 4]


def test_a_stage_counts_once_for_each_item_of_its_batch(metrics: Metrics) -> None:
    fraud(metrics).observe_stage("score", 2_000_000, items=64)
    snapshot = metrics.snapshot()
    durations = snapshot.series[STAGE_DURATION.series("fraud", "score")]
    assert durations[1:].sum() == 64
    assert durations.view(np.float64)[0] == pytest.approx(0.128)
    assert window_counts(snapshot.series[STAGE_WINDOW.series("fraud", "score")], snapshot.taken_ns).sum() == 64


def test_batch_sizes_fall_into_powers_of_two(metrics: Metrics) -> None:
    for items in (1, 2, 3, 64, 10_000):
        fraud(metrics).observe_batch(items)
    sizes = metrics.snapshot().series[BATCH_ITEMS.series("fraud")]
    counted = {(*BATCH_ITEMS.bounds, np.inf)[index]: count for index, count in enumerate(sizes[1:]) if count}
    assert counted == {1: 1, 2: 1, 4: 1, 64: 1, np.inf: 1}
    assert sizes.view(np.float64)[0] == 10_070


def test_a_batch_without_answers_records_nothing(metrics: Metrics) -> None:
    fraud(metrics).observe_requests(np.array([], np.int64))
    assert metrics.snapshot().series[REQUEST_DURATION.series("fraud")].tolist() == [0] * REQUEST_DURATION.num_slots


def test_a_pipeline_has_one_recorder_and_takes_new_budgets(metrics: Metrics) -> None:
    first = fraud(metrics)
    again = metrics.pipeline("fraud", ("score", "decide"), budget_ms=80, stage_budgets_ms={"decide": 5})
    assert again is first
    budgets = metrics.snapshot().values_of("headroom_budget_seconds")
    assert budgets == pytest.approx(
        {("fraud", "total"): 0.08, ("fraud", "score"): np.nan, ("fraud", "decide"): 0.005}, nan_ok=True
    )


def test_a_stage_may_not_be_called_like_the_whole_pipeline(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="pipeline fraud has a stage 'total'"):
        metrics.pipeline("fraud", ("score", "total"), budget_ms=50, stage_budgets_ms={})


def test_percentiles_forget_what_is_older_than_the_window(tmp_path: Path) -> None:
    now_ns = 1_000 * SLICE_NS
    metrics = Metrics.open(tmp_path, version="test", clock_ns=lambda: now_ns)
    fraud(metrics).observe_stage("score", 1_000_000, 1)
    now_ns += 6 * SLICE_NS
    fraud(metrics).observe_stage("score", 1_000_000, 1)
    counted = []
    for _ in range(2):
        snapshot = metrics.snapshot()
        counted.append(window_counts(snapshot.series[STAGE_WINDOW.series("fraud", "score")], snapshot.taken_ns).sum())
        now_ns += SLICE_NS
    assert counted == [2, 1]


def test_a_full_file_never_stops_a_recorder_and_the_losses_are_counted(
    metrics: Metrics,
) -> None:
    for num_slots in (10_000, 1):
        filler = (Series(Kind.HISTOGRAM, "filler", (str(num_slots), str(n)), num_slots) for n in itertools.count())
        while metrics._file.add(next(filler)) is not None:
            pass
    metrics.count_requests("http", "/v1/fraud/score", "200")
    metrics.set_connections("http", 1)
    pipeline = fraud(metrics)
    pipeline.observe_requests(np.array([1_000_000]))
    pipeline.observe_stage("score", 1_000_000, 3)
    pipeline.observe_batch(3)
    pipeline.set_queue(1)
    pipeline.count_outcomes(met=1)
    assert metrics.snapshot().values_of(OVERFLOW.name)[()] > 10
    assert metrics.snapshot().values_of(REQUESTS.name) == {}


def in_threads(num_threads: int, action: Callable[[], None]) -> None:
    threads = [threading.Thread(target=action) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_lose_no_update(metrics: Metrics) -> None:
    latencies = np.full(5, 3_000_000)

    def record() -> None:
        for n in range(400):
            pipeline = fraud(metrics)
            pipeline.observe_requests(latencies)
            pipeline.observe_stage("score", 1_000_000, 2)
            pipeline.count_outcomes(met=1)
            metrics.count_requests("http", f"/{n % 50}", "200")

    in_threads(4, record)
    snapshot = metrics.snapshot()
    assert snapshot.series[REQUEST_DURATION.series("fraud")][1:].sum() == 8_000
    assert snapshot.series[STAGE_DURATION.series("fraud", "score")][1:].sum() == 3_200
    assert snapshot.values_of(MET.name) == {("fraud",): 1_600}
    assert set(snapshot.values_of(REQUESTS.name).values()) == {32}


def test_own_metrics_count_though_their_file_was_removed(tmp_path: Path, metrics: Metrics) -> None:
    metrics.count_store("commit")
    for path in (tmp_path / "metrics").glob("*-*.mmap"):
        path.unlink()
    metrics.count_store("commit")
    assert metrics.snapshot().values_of(STORE_EVENTS.name) == {("commit",): 2}


def test_without_a_writable_folder_the_process_still_reports_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics").write_text("a file where the folder should be")
    metrics = Metrics.open(tmp_path, version="test")
    assert len(caplog.records) == 1
    metrics.count_store("commit")
    assert metrics.snapshot().values_of(STORE_EVENTS.name) == {("commit",): 1}
