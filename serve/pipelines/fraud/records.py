"""What happens to decisions after they were answered: looked up, labelled, erased. Any thread; waits for the store.

Called by the listeners' handlers. Every label and erasure leaves a line in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Literal, Protocol

import msgspec
import numpy as np

from serve.context import RequestContext
from serve.errors import DependencyFailed, NotFound
from serve.features.store import FRAUD, UNLABELLED, FeatureStore, Labelled, StoreFailed
from serve.pipelines.fraud.contract import Decision, Id
from serve.pipelines.fraud.flow import Scorer
from serve.pipelines.fraud.quality import part_of
from serve.pipelines.fraud.recording import Recorded, decode_recorded
from serve.pipelines.fraud.stages import explain

MAX_LABELS = 1024
LabelStatus = Literal["recorded", "unchanged", "unknown", "failed"]
_REASONS = "reasons"


class Label(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a transaction turned out to be."""

    transaction_id: Id
    fraud: bool


class LabelResult(msgspec.Struct, frozen=True, gc=False):
    """What became of a label; unknown: no such decision, or no longer; failed: to be given again."""

    transaction_id: str
    status: LabelStatus


class Found(msgspec.Struct, frozen=True, gc=False):
    """A decision with its transaction, and what it was labelled, where it was."""

    decision: Decision
    customer_id: str
    terminal_id: str
    amount: float
    timestamp: int
    fraud: bool | None


class LabelSink(Protocol):
    """Where labelled scores are counted."""

    def count_label(self, version: str, part: int, *, is_fraud: bool, is_stopped: bool, by: int) -> None:
        """`by` is -1 where a label was taken back."""
        ...


Audit = Callable[[str, RequestContext, Mapping[str, object]], None]


class FraudRecords:
    """Decisions of one store. `scorer` finds the reasons that there was no time for."""

    def __init__(self, store: FeatureStore, scorer: Scorer, sink: LabelSink, audit: Audit) -> None:
        self._store = store
        self._scorer = scorer
        self._sink = sink
        self._audit = audit

    def look_up(self, transaction_id: str) -> Found:
        """The stored decision, with reasons; raises NotFound, and DependencyFailed when the store does not answer."""
        try:
            entry = self._store.find(transaction_id)
        except StoreFailed as failure:
            raise _unavailable(failure) from None
        if entry is None:
            raise NotFound(f"no decision of transaction {transaction_id[:96]!r}; it may have expired or been erased")
        decision = self._explained(decode_recorded(entry.decision))
        label = None if entry.label == UNLABELLED else entry.label == FRAUD
        return Found(decision, entry.customer_id, entry.terminal_id, entry.amount_e4 / 1e4, entry.event_s, label)

    def label(self, labels: Sequence[Label], context: RequestContext) -> list[LabelResult]:
        """Records labels, in the order given; the last one of an id stands. Raises DependencyFailed."""
        wanted = {label.transaction_id: label.fraud for label in labels}
        try:
            results = dict(zip(wanted, self._store.label(wanted), strict=True))
        except StoreFailed as failure:
            raise _unavailable(failure) from None
        for name, is_fraud in wanted.items():
            self._count(results[name], is_fraud)
        status = {name: _status(results[name], is_fraud) for name, is_fraud in wanted.items()}
        counted = {kind: sum(one == kind for one in status.values()) for kind in ("recorded", "unchanged", "unknown")}
        noted = {name: is_fraud for name, is_fraud in wanted.items() if status[name] == "recorded"}
        self._audit("labelled", context, counted | {"labels": noted})
        return [LabelResult(label.transaction_id, status[label.transaction_id]) for label in labels]

    def erase(self, customer_id: str, context: RequestContext) -> None:
        """Makes a customer's data unreadable; raises DependencyFailed. Erasing nobody is no error: the audit line says
        that it was asked for, with the SHA-256 of the id and not the id.
        """
        try:
            self._store.erase(customer_id)
        except StoreFailed as failure:
            raise _unavailable(failure) from None
        self._audit("erased", context, {"customer_sha256": sha256(customer_id.encode()).hexdigest()})

    def _count(self, result: Labelled, is_fraud: bool) -> None:
        """Adds a label to the measures of quality, and takes the one before it back."""
        entry = result.entry
        if entry is None or entry.label == int(is_fraud):
            return
        recorded = decode_recorded(entry.decision)
        version, part = recorded.decision.model_version, part_of(recorded.log_odds)
        is_stopped = recorded.decision.decision != "approve"
        self._sink.count_label(version, part, is_fraud=is_fraud, is_stopped=is_stopped, by=1)
        if entry.label != UNLABELLED:
            self._sink.count_label(version, part, is_fraud=entry.label == FRAUD, is_stopped=is_stopped, by=-1)

    def _explained(self, recorded: Recorded) -> Decision:
        """The decision, with the reasons that had to be left out when it was made, if its model still serves."""
        decision = recorded.decision
        if recorded.row is None or decision.model_version != self._scorer.version:
            return decision
        row = np.frombuffer(bytearray(recorded.row), np.float32)[None, :]
        scores, contributions = self._scorer.score(row), self._scorer.contributions(row)
        found = explain(row[0], contributions[0], float(scores.log_odds[0]), decision.cold_start)
        return msgspec.structs.replace(
            decision, reasons=[*decision.reasons, *found.reasons], unexplained=found.unexplained,
            degraded=[one for one in decision.degraded if one != _REASONS],
        )  # fmt: skip


def _status(result: Labelled, is_fraud: bool) -> LabelStatus:
    if result.has_failed:
        return "failed"
    if result.entry is None:
        return "unknown"
    return "unchanged" if result.entry.label == int(is_fraud) else "recorded"


def _unavailable(failure: StoreFailed) -> DependencyFailed:
    return DependencyFailed(f"the feature store does not answer ({failure.event})")
