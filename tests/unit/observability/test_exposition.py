from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from serve.observability.exposition import render
from serve.observability.families import BATCH_ITEMS, FAMILIES, REQUEST_DURATION
from serve.observability.metrics import Metrics
from serve.observability.shared import Kind

OPENMETRICS_ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    metrics = Metrics.open(tmp_path, version="1.2.3")
    pipeline = metrics.pipeline("fraud", ("score", "decide"), budget_ms=50, stage_budgets_ms={"score": 10})
    pipeline.observe_requests(np.array([400_000, 500_000, 50_000_000, 50_000_001, 20_000_000_000]))
    pipeline.observe_batch(3)
    pipeline.count_outcomes(met=3, missed=2)
    metrics.count_requests("http", 'a "quoted"\\path\n', "200", 5)
    return metrics


def parse(metrics: Metrics, accept: str) -> dict[str, Metric]:
    body, content_type = render(metrics.snapshot(), accept)
    is_openmetrics = content_type.startswith("application/openmetrics-text")
    families: Iterable[Metric] = (parse_openmetrics if is_openmetrics else parse_plain)(body.decode())
    return {family.name: family for family in families}


@pytest.mark.parametrize("accept", ["", OPENMETRICS_ACCEPT])
def test_every_family_is_shown_with_its_type_and_help(metrics: Metrics, accept: str) -> None:
    families = parse(metrics, accept)
    shown = {name: (family.type, family.documentation) for name, family in families.items()}
    prometheus_type = {Kind.COUNTER: "counter", Kind.HISTOGRAM: "histogram"}
    assert shown == {
        family.name.removesuffix("_total"): (prometheus_type.get(family.kind, "gauge"), family.help)
        for family in FAMILIES
    }


@pytest.mark.parametrize("accept", ["", OPENMETRICS_ACCEPT])
def test_a_histogram_counts_what_is_at_most_each_bound(metrics: Metrics, accept: str) -> None:
    samples = parse(metrics, accept)[REQUEST_DURATION.name].samples
    buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
    assert list(buckets) == [*REQUEST_DURATION.published, float("inf")]
    assert (buckets[0.0005], buckets[0.001], buckets[0.05], buckets[0.06]) == (2, 2, 3, 4)
    assert (buckets[10.0], buckets[float("inf")]) == (4, 5)
    totals = {s.name: s.value for s in samples if "le" not in s.labels}
    assert totals[f"{REQUEST_DURATION.name}_count"] == 5
    assert totals[f"{REQUEST_DURATION.name}_sum"] == pytest.approx(20.100900001)


def test_batch_sizes_are_shown_in_items(metrics: Metrics) -> None:
    samples = parse(metrics, "")[BATCH_ITEMS.name].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (buckets["2.0"], buckets["4.0"], buckets["+Inf"]) == (0, 1, 1)


def test_label_values_survive_quoting(metrics: Metrics) -> None:
    (sample,) = parse(metrics, "")["headroom_requests"].samples
    assert (sample.labels["endpoint"], sample.value) == ('a "quoted"\\path\n', 5)


def test_a_stage_without_a_published_budget_has_no_budget_sample(metrics: Metrics) -> None:
    budgets = {s.labels["stage"]: s.value for s in parse(metrics, "")["headroom_budget_seconds"].samples}
    assert budgets == {"total": 0.05, "score": 0.01}


def test_the_content_type_is_what_the_scraper_accepts(metrics: Metrics) -> None:
    assert render(metrics.snapshot(), "*/*")[1].startswith("text/plain; version=0.0.4")
    assert render(metrics.snapshot(), OPENMETRICS_ACCEPT)[1].startswith("application/openmetrics-text; version=1.0.0")


def test_what_another_version_of_the_server_recorded_is_passed_over(metrics: Metrics) -> None:
    metrics._file.add(BATCH_ITEMS.series("old")._replace(num_slots=5))
    metrics._file.add(BATCH_ITEMS.series("x")._replace(name="headroom_of_tomorrow"))
    body, _ = render(metrics.snapshot())
    assert b'"old"' not in body
    assert b"tomorrow" not in body
