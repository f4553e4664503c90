"""What watches the fraud pipeline's model beside the answers: a thread that looks once a second.

Drift and the version in shadow come from rows that were scored here; quality and calibration from the labels that all
replicas of this node counted, so that they agree.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from serve.observability.families import LABELLED, LABELLED_STOPPED, SCORE_DRIFT, SHADOW, SHADOW_DIFFERENCE
from serve.observability.folder import Snapshot
from serve.observability.metrics import Metrics
from serve.pipelines.fraud.flow import FraudFlow, Scorer
from serve.pipelines.fraud.quality import AS_SCORED, NUM_PARTS, Counts, calibrate, quality
from serve.pipelines.fraud.watching import Watch

log = logging.getLogger(__name__)

_ROUND_S = 1.0
_ROUNDS_PER_QUALITY = 5
_CLOSE_S = 5.0


class FraudWatch:
    """Owns the thread; `tune` begins it."""

    def __init__(self, watch: Watch, scorer: Scorer, shadow: Scorer | None, metrics: Metrics) -> None:
        self.watch = watch
        self._versions = (scorer.version, None if shadow is None else shadow.version)
        self._metrics = metrics
        self._fraud = metrics.fraud()
        self._flow: FraudFlow | None = None
        self._calibrates = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="fraud-watch", daemon=True)

    def tune(self, flow: FraudFlow, *, calibrates: bool) -> None:
        """Whether probabilities are corrected by labels from now on; and the thresholds the shadow is compared by."""
        self._flow, self._calibrates = flow, calibrates
        self.watch.policy = flow.policy
        if not self._thread.is_alive() and not self._closing.is_set():
            self._thread.start()

    def shadow_report(self) -> Mapping[str, Any]:
        """`GET /v1/fraud/shadow`: how the version in shadow would have decided, over all replicas."""
        snapshot = self._metrics.snapshot()
        counts = {
            (served, shadow): int(n)
            for (*versions, served, shadow), n in snapshot.values_of(SHADOW.name).items()
            if tuple(versions) == self._versions
        }
        total = sum(counts.values())
        difference = next(
            (n for labels, n in snapshot.values_of(SHADOW_DIFFERENCE.name).items() if labels == self._versions), 0.0
        )
        decisions: dict[str, dict[str, int]] = {}
        for (served, shadow), n in sorted(counts.items()):
            decisions.setdefault(served, {})[shadow] = n
        same = sum(n for (served, shadow), n in counts.items() if served == shadow)
        return {
            "version": self._versions[0],
            "shadow_version": self._versions[1],
            "transactions": total,
            "agreement": same / total if total else None,
            "mean_absolute_difference": difference / total if total else None,
            "psi": snapshot.values_of(SCORE_DRIFT.name).get(("shadow_psi",)) if total else None,
            "decisions": decisions,
        }

    def close(self) -> None:
        """Ends the thread after its round."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _loop(self) -> None:
        number = 0
        while not self._closing.wait(_ROUND_S):
            try:
                self.watch.round()
            except Exception:
                log.exception("watching the fraud pipeline's scores failed")
            try:
                if number % _ROUNDS_PER_QUALITY == 0:
                    self._look_at_labels()
            except Exception:
                log.exception("measuring the fraud pipeline by labels failed")
            number += 1

    def _look_at_labels(self) -> None:
        snapshot = self._metrics.snapshot()
        version = self._versions[0]
        genuine, fraud = label_counts(snapshot, version)
        if genuine.sum() + fraud.sum() > 0:
            measures = asdict(quality(genuine, fraud, stopped_counts(snapshot, version)))
            self._fraud.set_quality({name: value for name, value in measures.items() if not np.isnan(value)})
        flow = self._flow
        if flow is not None:
            flow.calibration = (calibrate(genuine, fraud) if self._calibrates else None) or AS_SCORED


def label_counts(snapshot: Snapshot, version: str) -> tuple[Counts, Counts]:
    """Labelled transactions that `version` scored, per part of the log-odds: genuine, and fraud."""
    genuine, fraud = np.zeros(NUM_PARTS), np.zeros(NUM_PARTS)
    for (scored_by, part, is_fraud, change), n in snapshot.values_of(LABELLED.name).items():
        if scored_by != version:
            continue
        counts = fraud if is_fraud == "true" else genuine
        counts[int(part)] += n if change == "given" else -n
    return np.maximum(genuine, 0), np.maximum(fraud, 0)


def stopped_counts(snapshot: Snapshot, version: str) -> tuple[float, float]:
    """Genuine, and fraud, among labelled transactions that had been reviewed or declined."""
    found = {"false": 0.0, "true": 0.0}
    for (scored_by, is_fraud, change), n in snapshot.values_of(LABELLED_STOPPED.name).items():
        if scored_by != version:
            continue
        found[is_fraud] += n if change == "given" else -n
    return found["false"], found["true"]
