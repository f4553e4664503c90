"""Looks at what was scored without keeping an answer waiting: drift against training, a second version in shadow.

Rows of answered batches enter, as many as a round can take; counts and distances leave to the metrics. Its own thread
runs a round a second; the pipeline's thread only leaves its arrays here, which nobody changes any more.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve.backends.base import Scores
from serve.observability.drift import Drift, Parts, psi
from serve.pipelines.fraud.contract import DecisionKind
from serve.pipelines.fraud.flow import Scorer
from serve.pipelines.fraud.stages import Policy, Rows

ROWS_PER_ROUND = 4096
"""More are left out: a sample is enough, and copying costs."""
_KINDS: tuple[DecisionKind, ...] = ("approve", "review", "decline")


class WatchSink(Protocol):
    """Where what was found is shown."""

    def set_drift(self, feature_psi: Mapping[str, float], score: Mapping[str, float]) -> None: ...

    def count_shadow(
        self, versions: tuple[str, str], agreement: Mapping[tuple[str, str], int], absolute_difference: float
    ) -> None:
        """`versions`: of the one that serves and the one in shadow."""
        ...


class Watch:
    """Implements the flow's `Watcher`. `shadow` is scored on the same rows and answers nobody."""

    def __init__(
        self, version: str, drift: Drift, shadow: Scorer | None, policy: Policy, sink: WatchSink, score_parts: Parts
    ) -> None:
        self.policy = policy
        self._version = version
        self._drift = drift
        self._shadow = shadow
        self._sink = sink
        self._lock = threading.Lock()
        self._pending: list[tuple[Rows, Rows]] = []
        self._num_pending = 0
        self._edges = np.array(score_parts.edges, np.float32)
        self._seen, self._shadowed = (np.zeros(len(self._edges) + 1) for _ in range(2))

    def saw(self, rows: Rows, scores: Scores) -> None:
        """Leaves a batch's rows and scores for the next round."""
        if self._num_pending >= ROWS_PER_ROUND:
            return
        with self._lock:
            self._pending.append((rows, scores.probability))
            self._num_pending += len(rows)

    def round(self) -> None:
        """Takes what was left and shows what it says."""
        with self._lock:
            pending, self._pending, self._num_pending = self._pending, [], 0
        if not pending:
            return
        rows = np.concatenate([rows for rows, _ in pending])
        probability = np.concatenate([probability for _, probability in pending])
        self._drift.add(rows, probability)
        distances = self._drift.distances()
        if distances is not None:
            score = {"psi": distances.score_psi, "ks": distances.score_ks}
            self._sink.set_drift(distances.feature_psi, score)
        if self._shadow is not None:
            versions = (self._version, self._shadow.version)
            self._compare(versions, probability, self._shadow.score(rows).probability)

    def _compare(self, versions: tuple[str, str], served: Rows, shadow: Rows) -> None:
        policy = self.policy
        first, second = (_kinds(probability, policy) for probability in (served, shadow))
        pairs, counts = np.unique(first * len(_KINDS) + second, return_counts=True)
        agreement = {
            (_KINDS[pair // len(_KINDS)], _KINDS[pair % len(_KINDS)]): count
            for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
        }
        self._sink.count_shadow(versions, agreement, float(np.abs(served - shadow).sum(dtype=np.float64)))
        self._seen += self._parts(served)
        self._shadowed += self._parts(shadow)
        distance = psi(self._shadowed / self._shadowed.sum(), self._seen / self._seen.sum())
        self._sink.set_drift({}, {"shadow_psi": distance})

    def _parts(self, probability: Rows) -> npt.NDArray[np.int64]:
        return np.bincount(np.searchsorted(self._edges, probability), minlength=len(self._seen))


def _kinds(probability: Rows, policy: Policy) -> npt.NDArray[np.int64]:
    """Which of `_KINDS` each probability means by the model's thresholds alone."""
    return (probability >= policy.review_at).astype(np.int64) + (probability >= policy.decline_at)
