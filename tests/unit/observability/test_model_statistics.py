"""Model statistics: what batches come to, over processes, as Triton's tools read it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from serve.batching.accounts import BatchAccounts
from serve.batching.arrival import Answer, Encoded
from serve.errors import InvalidInput
from serve.ingress.wire.oip_statistics import model_statistics
from serve.observability import model_statistics as module
from serve.observability.metrics import Metrics
from serve.observability.model_statistics import BatchTimes, ModelStatistics, version_times
from serve.repository.protobuf_json import as_json
from tests.unit.batching.cases import arrival

KEY = ("m", "1")


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics.open(tmp_path, version="0")


def answered(arrived_ns: int, queue_ns: int, *, is_good: bool = True) -> Answer:
    encoded, error = (Encoded(b""), None) if is_good else (None, InvalidInput("no"))
    return Answer(arrival(now_ns=arrived_ns), encoded, error, queue_ns)


def shown(metrics: Metrics, key: tuple[str, str] = KEY) -> dict[str, object]:
    (found,) = as_json(model_statistics(version_times(metrics.snapshot(), [key])))["model_stats"]
    return found


def test_every_duration_counts_a_request_once_with_its_batch_s_time(metrics: Metrics) -> None:
    accounts = BatchAccounts(metrics.recorder(ModelStatistics, *KEY))
    answers = [answered(100, 20), answered(200, 10), answered(300, 0, is_good=False)]
    began_ms = time.time_ns() // 1_000_000
    accounts.observe(answers, {"decode": 5, "infer": 7, "encode": 3}, [4, 4, 2], 3, 1_000)
    found = shown(metrics)
    assert (found["inference_count"], found["execution_count"]) == (10, 3)
    assert found["inference_stats"] == {
        "success": {"count": 2, "ns": 900 + 800}, "fail": {"count": 1, "ns": 700}, "queue": {"count": 2, "ns": 30},
        "compute_input": {"count": 2, "ns": 10}, "compute_infer": {"count": 2, "ns": 14},
        "compute_output": {"count": 2, "ns": 6}, "cache_hit": {"count": 0, "ns": 0}, "cache_miss": {"count": 0, "ns": 0},
    }  # fmt: skip
    assert [(one["batch_size"], one["compute_infer"]["count"]) for one in found["batch_stats"]] == [(2, 1), (4, 2)]
    assert began_ms <= found["last_inference"] <= time.time_ns() // 1_000_000


def test_a_flow_that_says_nothing_of_its_runs_ran_once_with_every_item(metrics: Metrics) -> None:
    accounts = BatchAccounts(metrics.recorder(ModelStatistics, *KEY))
    accounts.observe([answered(0, 0)] * 5, {"decode": 1, "fetch": 2, "score": 3, "encode": 4}, [], 5, 10)
    found = shown(metrics)
    assert (found["inference_count"], found["execution_count"]) == (5, 1)
    assert found["inference_stats"]["compute_infer"] == {"count": 5, "ns": 25}


def test_the_models_of_a_pipeline_have_the_stage_in_which_they_are_asked(metrics: Metrics) -> None:
    step = metrics.recorder(ModelStatistics, "part", "3")
    accounts = BatchAccounts(metrics.recorder(ModelStatistics, *KEY), {"score": step, "skipped": step})
    accounts.observe([answered(0, 0)] * 2, {"decode": 1, "score": 30, "encode": 4}, [], 2, 100)
    found = shown(metrics, ("part", "3"))
    assert (found["inference_count"], found["execution_count"]) == (2, 1)
    assert found["inference_stats"]["compute_infer"] == found["inference_stats"]["success"] == {"count": 2, "ns": 60}


def test_replicas_are_added_up(tmp_path: Path) -> None:
    first, second = (Metrics.open(tmp_path, version="0") for _ in range(2))
    for metrics in (first, second):
        accounts = BatchAccounts(metrics.recorder(ModelStatistics, *KEY))
        accounts.observe([answered(0, 0)], {"infer": 5}, [2], 1, 10)
    for metrics in (first, second):
        assert shown(metrics)["inference_count"] == 4
        assert shown(metrics)["batch_stats"][0]["compute_infer"] == {"count": 2, "ns": 10}


def test_a_version_that_has_answered_nothing_has_every_field_at_zero(metrics: Metrics) -> None:
    found = shown(metrics)
    assert {
        "name": "m",
        "version": "1",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
    }.items() <= found.items()
    assert all(one == {"count": 0, "ns": 0} for one in found["inference_stats"].values())
    assert (found["batch_stats"], found["memory_usage"], found["response_stats"]) == ([], [], {})


def test_very_many_batch_sizes_are_counted_in_the_totals_alone(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_SIZES", 3)
    recorder = metrics.recorder(ModelStatistics, *KEY)
    for rows in range(1, 11):
        recorder.observe(BatchTimes(1, 1, 0, 0, 0, 0, 1, 0), ((rows, 1),), 1)
    found = shown(metrics)
    assert (found["inference_count"], found["execution_count"]) == (55, 10)
    assert [one["batch_size"] for one in found["batch_stats"]] == [1, 2, 3]
