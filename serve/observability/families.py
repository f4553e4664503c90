"""Every metric's name, labels and meaning. Recorders and readers share these, so that no name is written twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from serve.observability.latency import BOUNDS_NS, PUBLISHED_MS, WINDOW_SLOTS
from serve.observability.shared import Kind, Series


@dataclass(frozen=True, slots=True)
class Family:
    """A metric; labels come from closed sets. `bounds` are a histogram's stored buckets, `published` those shown."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()
    published: tuple[float, ...] = ()
    num_counts: int = 1
    """Of a tally."""

    @property
    def num_slots(self) -> int:
        """Slots of one series: a histogram's are its sum, then a count per bucket, the last one above all bounds."""
        if self.kind is Kind.WINDOW:
            return WINDOW_SLOTS
        if self.kind is Kind.TALLY:
            return self.num_counts
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

MODEL_TIMES: Final = Family(
    "headroom_model_times",
    Kind.TALLY,
    ("model", "version"),
    "What `ModelStatistics` says: inferences, executions, then count and nanoseconds of each duration.",
    num_counts=14,
)
MODEL_BATCHES: Final = Family(
    "headroom_model_batches",
    Kind.TALLY,
    ("model", "version", "batch_size"),
    "Executions of a batch size, and nanoseconds of its input, inference and output.",
    num_counts=4,
)
LAST_INFERENCE: Final = Family(
    "headroom_model_last_inference_ms",
    Kind.GAUGE_MAX,
    ("model", "version"),
    "When a model last answered, in Unix time.",
)

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
LABELLED: Final = Family(
    "headroom_fraud_labels_total",
    Kind.COUNTER,
    ("version", "part", "fraud", "change"),
    "Labels given and taken back, by part of the log-odds that the transaction was scored with.",
)
LABELLED_STOPPED: Final = Family(
    "headroom_fraud_labels_of_stopped_total",
    Kind.COUNTER,
    ("version", "fraud", "change"),
    "Labels given and taken back of transactions that had been reviewed or declined.",
)
QUALITY: Final = Family(
    "headroom_fraud_quality",
    Kind.GAUGE_MAX,
    ("measure",),
    "By labels: auc_roc; precision and recall of review or decline; calibration_error.",
)
FEATURE_PSI: Final = Family(
    "headroom_fraud_feature_psi",
    Kind.GAUGE_MAX,
    ("feature",),
    "Population stability index of a feature against training; the largest of all replicas.",
)
SCORE_DRIFT: Final = Family(
    "headroom_fraud_score_drift",
    Kind.GAUGE_MAX,
    ("measure",),
    "Distance of the score's distribution: psi and ks from training, shadow_psi between the two versions.",
)
SHADOW: Final = Family(
    "headroom_fraud_shadow_decisions_total",
    Kind.COUNTER,
    ("version", "shadow_version", "served", "shadow"),
    "Transactions also scored by the version in shadow, by what each version's score means.",
)
SHADOW_DIFFERENCE: Final = Family(
    "headroom_fraud_shadow_difference_total",
    Kind.COUNTER,
    ("version", "shadow_version"),
    "Sum of absolute differences of the two versions' probabilities.",
)
OVERFLOW: Final = Family(
    "headroom_metrics_overflow_total", Kind.COUNTER, (), "Recordings lost because a metrics file was full."
)
BUILD_INFO: Final = Family("headroom_build_info", Kind.GAUGE_MAX, ("version", "python"), "Versions of live replicas.")

FAMILIES: Final = (
    *(REQUESTS, REQUEST_DURATION, STAGE_DURATION, IN_FLIGHT, MET, MISSED, DEGRADED, REFUSED, BUDGET, BATCH_ITEMS),
    *(QUEUE_ITEMS, REFUSALS, REJECTIONS, CONNECTIONS, STORE_EVENTS, STORE_STATE),
    *(LABELLED, LABELLED_STOPPED, QUALITY, FEATURE_PSI, SCORE_DRIFT, SHADOW, SHADOW_DIFFERENCE, OVERFLOW, BUILD_INFO),
)
"""What Prometheus is shown, in this order."""

REQUEST_WINDOW: Final = Family("headroom_request_window", Kind.WINDOW, _PIPELINE, "Last minute of request durations.")
STAGE_WINDOW: Final = Family("headroom_stage_window", Kind.WINDOW, _STAGE, "Last minute of stage durations.")
