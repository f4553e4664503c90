"""The fraud pipeline: fetch_features → assemble_row → score → explain → decide, on a whole batch.

Hot: per batch, and a few µs per transaction (see benchmarks/fraud.py). Rungs leave out, in order: `reasons` (of review
and decline), then `features` (group averages stand in for the store).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from serve.batching.outcome import Outcome
from serve.batching.runner import Batch
from serve.budgets.estimate import QuantileEstimate
from serve.errors import HeadroomError
from serve.features.breaker import Breaker
from serve.features.store import Events, FeatureStore, Fetched, Stored, StoreFailed
from serve.pipelines.fraud.contract import Decision, Reason, Transaction
from serve.pipelines.fraud.stages import (
    Policy,
    Rows,
    assemble_rows,
    average_rows,
    reasons,
    timestamp_error,
    to_events,
)

_WARM_UP_ROWS = (1, 16, 64, 256)
_FEATURES, _REASONS, _UNRECORDED = "features", "reasons", "unrecorded"


class Scorer(Protocol):
    """A model of one probability per row, and what moved it."""

    name: str
    version: str

    def score(self, rows: Rows) -> Rows:
        """Probability of fraud, float32 [n]."""
        ...

    def contributions(self, rows: Rows) -> Rows:
        """Exact SHAP values of the log-odds, float32 [n, F + 1], the last column the expected value."""
        ...


class StoreSink(Protocol):
    """Where the store's events and states are counted."""

    def count_store(self, event: str, n: int = 1) -> None: ...

    def set_store_state(self, name: str, value: float) -> None: ...


class FraudFlow:
    """Implements `Flow`. `policy` may be replaced while it runs; one thread at a time."""

    def __init__(
        self,
        store: FeatureStore,
        scorer: Scorer,
        policy: Policy,
        sink: StoreSink,
        *,
        rungs: Sequence[str],
        explain_budget_ns: int,
        decide_budget_ns: int,
        commit_grace_ns: int,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self._store = store
        self._scorer = scorer
        self._sink = sink
        self._left_out = [frozenset(rungs[:rung]) for rung in range(len(rungs) + 1)]
        self._explain_budget_ns = explain_budget_ns
        self._commit_limit_ns = decide_budget_ns + commit_grace_ns
        self._wall_clock_s = wall_clock_s
        self._reading, self._writing = Breaker(), Breaker()
        self._explain_row = QuantileEstimate()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Decision).decode

    def run(self, items: Sequence[Transaction], batch: Batch) -> Sequence[Outcome[Decision]]:
        """One decision or error per transaction, in order."""
        left_out, policy = self._left_out[batch.rung], self.policy
        timings = batch.timings
        timings.start()
        rows_of, transactions, event_s, errors = self._unique(items)
        if not transactions:
            return [errors[i] for i in range(len(items))]
        events = to_events(transactions, event_s)
        fetched = None if _FEATURES in left_out else self._fetch_features(events)
        timings.end("fetch_features")
        rows = average_rows(events, policy) if fetched is None else _assemble_row(events, fetched)
        timings.end("assemble_row")
        probabilities = self._scorer.score(rows).tolist()
        timings.end("score")
        explained = {} if _REASONS in left_out else self._explain(rows, probabilities, policy)
        timings.end("explain")
        decisions = self._decide(events, fetched, probabilities, explained, policy)
        timings.end("decide")
        return [errors[i] if i in errors else decisions[rows_of[items[i].transaction_id]] for i in range(len(items))]

    def warm_up(self, max_rows: int, observe: Callable[[int, int], None]) -> None:
        """Runs everything but the recording, on transactions of nobody, so that no request pays for compilation.

        `observe` is given the rows, at most `max_rows`, and nanoseconds of each run after the first. Sizes that never
        run would never be corrected: recording is not in these times.
        """
        self._warm_up(max_rows)
        for n in sorted({min(n, max_rows) for n in _WARM_UP_ROWS}):
            began_ns = time.monotonic_ns()
            self._warm_up(n)
            observe(n, time.monotonic_ns() - began_ns)

    def _warm_up(self, n: int) -> None:
        nobody = [f"warm-up {i}" for i in range(n)]
        events = Events(nobody, nobody, nobody, np.zeros(n, np.int64), np.zeros(n, np.int64))
        fetched = self._fetch_features(events)
        rows = average_rows(events, self.policy) if fetched is None else _assemble_row(events, fetched)
        self._scorer.score(rows)
        self._contributions(rows[:1])

    def _unique(
        self, items: Sequence[Transaction]
    ) -> tuple[dict[str, int], list[Transaction], list[int], dict[int, HeadroomError]]:
        """Rows by transaction id (a repeated one gets its first one's answer), and the items that cannot be scored."""
        now_s = int(self._wall_clock_s())
        rows_of: dict[str, int] = {}
        transactions: list[Transaction] = []
        event_s: list[int] = []
        errors: dict[int, HeadroomError] = {}
        for i, transaction in enumerate(items):
            if transaction.transaction_id in rows_of:
                continue
            seconds = transaction.event_s
            error = timestamp_error(transaction, seconds, now_s)
            if error is not None:
                errors[i] = error
                continue
            rows_of[transaction.transaction_id] = len(transactions)
            transactions.append(transaction)
            event_s.append(seconds)
        return rows_of, transactions, event_s, errors

    def _fetch_features(self, events: Events) -> Fetched | None:
        now_ns = time.monotonic_ns()
        if not self._reading.allows(now_ns):
            return None
        try:
            fetched = self._store.fetch(events)
        except StoreFailed as failure:
            self._reading.failed(now_ns)
            self._count_failure(f"fetch_{failure.event}")
            return None
        self._recovered(self._reading)
        return fetched

    def _explain(self, rows: Rows, probabilities: list[float], policy: Policy) -> dict[int, list[Reason]]:
        """Reasons of the rows that are reviewed or declined, as many as the stage's budget is predicted to hold."""
        flagged = [i for i, p in enumerate(probabilities) if p >= policy.review_at]
        if not flagged:
            return {}
        flagged = flagged[: max(1, self._explain_budget_ns // max(1, self._explain_row.ns))]
        contributions = self._contributions(rows[flagged])
        return {i: reasons(rows[i], contributions[k]) for k, i in enumerate(flagged)}

    def _contributions(self, rows: Rows) -> Rows:
        began_ns = time.monotonic_ns()
        contributions = self._scorer.contributions(rows)
        self._explain_row.observe((time.monotonic_ns() - began_ns) // len(rows))
        return contributions

    def _decide(
        self,
        events: Events,
        fetched: Fetched | None,
        probabilities: list[float],
        explained: dict[int, list[Reason]],
        policy: Policy,
    ) -> list[Decision]:
        """Decisions of all rows, recorded before they are returned, or saying that they are not."""
        degraded = [] if fetched is not None else [_FEATURES]
        decisions = [
            self._decision(transaction_id, probability, explained.get(i), degraded, policy)
            for i, (transaction_id, probability) in enumerate(zip(events.transaction_ids, probabilities, strict=True))
        ]
        if fetched is None:
            return [_unrecorded(decision) for decision in decisions]
        to_record: list[bytes | None] = [self._encode(decision) for decision in decisions]
        for stored in fetched.stored:
            to_record[stored.row] = None
        return self._record(events, fetched, decisions, to_record)

    def _decision(
        self,
        transaction_id: str,
        probability: float,
        explained: list[Reason] | None,
        degraded: list[str],
        policy: Policy,
    ) -> Decision:
        kind = policy.decision(probability)
        if explained is None and kind != "approve":
            degraded = [*degraded, _REASONS]
        scorer = self._scorer
        return Decision(
            transaction_id, probability, kind, policy.risk_level(probability), {scorer.name: probability},
            explained or [], degraded, scorer.version,
        )  # fmt: skip

    def _record(
        self, events: Events, fetched: Fetched, decisions: list[Decision], to_record: list[bytes | None]
    ) -> list[Decision]:
        stored: Sequence[Stored] = fetched.stored
        is_recorded = True
        if len(stored) < len(decisions):
            try:
                stored = [*stored, *self._commit(events, fetched, to_record)]
            except StoreFailed as failure:
                is_recorded = False
                self._count_failure(f"commit_{failure.event}")
        if not is_recorded:
            decisions = [_unrecorded(decision) for decision in decisions]
        for one in stored:
            decisions[one.row] = self._decode(one.decision)
        return decisions

    def _commit(self, events: Events, fetched: Fetched, to_record: list[bytes | None]) -> list[Stored]:
        now_ns = time.monotonic_ns()
        if not self._writing.allows(now_ns):
            raise StoreFailed("breaker_open")
        try:
            meanwhile = self._store.commit(events, to_record, fetched, now_ns + self._commit_limit_ns)
        except StoreFailed:
            self._writing.failed(now_ns)
            raise
        self._recovered(self._writing)
        return meanwhile

    def _recovered(self, breaker: Breaker) -> None:
        was_open = breaker.is_open
        breaker.succeeded()
        if was_open:
            self._show_breakers()

    def _count_failure(self, event: str) -> None:
        self._sink.count_store(event)
        self._show_breakers()

    def _show_breakers(self) -> None:
        self._sink.set_store_state("breaker_open", float(self._reading.is_open or self._writing.is_open))


def _assemble_row(events: Events, fetched: Fetched) -> Rows:
    return assemble_rows(events, fetched.customer, fetched.terminal)


def _unrecorded(decision: Decision) -> Decision:
    return msgspec.structs.replace(decision, degraded=[*decision.degraded, _UNRECORDED])
