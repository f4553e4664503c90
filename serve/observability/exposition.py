"""Text for Prometheus: a snapshot of all replicas' metrics enters, an HTTP body and its content type leave.

Called by the listener that answers `/metrics`. OpenMetrics for a scraper that asks for it, the plain format otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from serve.observability.families import FAMILIES, Family
from serve.observability.folder import Snapshot
from serve.observability.shared import Kind, Slots


def render(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """The body and content type that answer a scrape with this Accept header."""
    registry = CollectorRegistry()
    registry.register(_SnapshotCollector(snapshot))
    if "application/openmetrics-text" in accept:
        return openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_PLAIN_0_0_4


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Every family, those without a series included, so that a scraper learns their names and help."""
        for family in FAMILIES:
            yield (
                _histogram(family, self._snapshot) if family.kind is Kind.HISTOGRAM else _scalar(family, self._snapshot)
            )


def _scalar(family: Family, snapshot: Snapshot) -> Metric:
    is_counter = family.kind is Kind.COUNTER
    metric = (CounterMetricFamily if is_counter else GaugeMetricFamily)(family.name, family.help, labels=family.labels)
    for labels, value in sorted(snapshot.values_of(family.name).items()):
        if not math.isnan(value):
            metric.add_metric(labels, value)
    return metric


def _histogram(family: Family, snapshot: Snapshot) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, slots in sorted(snapshot.slots_of(family.name, family.num_slots).items()):
        metric.add_metric(labels, _published_buckets(family, slots), sum_value=float(slots.view(np.float64)[0]))
    return metric


def _published_buckets(family: Family, slots: Slots) -> list[tuple[str, float]]:
    """Cumulative counts at the published bounds, each of which is a stored bound too, and at +Inf."""
    cumulative = np.cumsum(slots[1:])
    at_published = cumulative[np.searchsorted(family.bounds, family.published)]
    bounds = [*(repr(bound) for bound in family.published), "+Inf"]
    return list(zip(bounds, [*at_published.tolist(), int(cumulative[-1])], strict=True))
