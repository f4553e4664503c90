"""The fraud pipeline: fetch_features → assemble_row → score → explain → decide, on a whole batch.

Hot: per batch, and a few µs per transaction (see benchmarks/fraud.py). Rungs leave out, in order: `reasons` (of review
and decline), then `features` (group averages stand in for the store).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from serve.backends.base import Scores
from serve.batching.outcome import Outcome
from serve.batching.runner import Batch
from serve.budgets.estimate import QuantileEstimate
from serve.errors import HeadroomError
from serve.features.store import Events, Fetched
from serve.features.windows import Windows
from serve.pipelines.fraud.contract import Decision, Reason, Transaction
from serve.pipelines.fraud.quality import AS_SCORED
from serve.pipelines.fraud.recording import Recorded, Recording, decode_recorded
from serve.pipelines.fraud.rules import Rules
from serve.pipelines.fraud.stages import (
    ColdStart,
    Explanation,
    Policy,
    Rows,
    assemble_rows,
    average_rows,
    calibrated,
    cold_start,
    explain,
    timestamp_error,
    to_events,
)

_WARM_UP_ROWS = (1, 16, 64, 256)
_FEATURES, _FEAST, _REASONS, _UNRECORDED = "features", "feast", "reasons", "unrecorded"


class Scorer(Protocol):
    """An ensemble that scores rows, and what moved it."""

    version: str
    member_names: tuple[str, ...]

    def score(self, rows: Rows) -> Scores:
        """Of `rows`, float32 [n, F]."""
        ...

    def contributions(self, rows: Rows) -> Rows:
        """To the log-odds, float32 [n, F + 1], the last column what is expected of a row nothing is known of."""
        ...


class Overrides(Protocol):
    """Values of some columns, from elsewhere."""

    def put_into(self, rows: Rows) -> None: ...


class FeatureSource(Protocol):
    """Where features come from that are not our own."""

    def read(self, events: Events) -> Overrides | None:
        """Of a batch; None when there is no answer."""
        ...


class Watcher(Protocol):
    """Who looks at what was scored, when the answers have been made; must not take long."""

    def saw(self, rows: Rows, scores: Scores) -> None: ...


class FraudFlow:
    """Implements `Flow`; one thread at a time. `policy`, `rules` and `calibration` may be replaced while it runs."""

    def __init__(
        self,
        recording: Recording,
        scorer: Scorer,
        policy: Policy,
        watcher: Watcher,
        *,
        rungs: Sequence[str],
        explain_budget_ns: int,
        rules: Rules,
        source: FeatureSource | None = None,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self.rules = rules
        self.calibration = AS_SCORED
        self._recording = recording
        self._scorer = scorer
        self._watcher = watcher
        self._source = source
        self._left_out = [frozenset(rungs[:rung]) for rung in range(len(rungs) + 1)]
        self._explain_budget_ns = explain_budget_ns
        self._wall_clock_s = wall_clock_s
        self._explain_row = QuantileEstimate()

    def run(self, items: Sequence[Transaction], batch: Batch) -> Sequence[Outcome[Decision]]:
        """One decision or error per transaction, in order."""
        left_out, policy = self._left_out[batch.rung], self.policy
        timings = batch.timings
        timings.start()
        rows_of, transactions, event_s, errors = self._unique(items)
        if not transactions:
            return [errors[i] for i in range(len(items))]
        events = to_events(transactions, event_s)
        fetched = None if _FEATURES in left_out else self._recording.fetch(events)
        overrides = None if fetched is None or self._source is None else self._source.read(events)
        timings.end("fetch_features")
        rows = average_rows(events, policy) if fetched is None else _assemble_row(events, fetched)
        unknown = None if fetched is None else cold_start(rows, fetched.customer, fetched.terminal, policy)
        if overrides is not None:
            overrides.put_into(rows)
        timings.end("assemble_row")
        scores = self._scorer.score(rows)
        probability = calibrated(scores, self.calibration)
        broken = self.rules.hits(events, _windows(events, fetched))
        timings.end("score")
        flagged = _flagged(probability, broken, policy)
        explained = {} if _REASONS in left_out else self._explain(rows, scores, flagged, unknown)
        timings.end("explain")
        lacking = [_FEAST] if self._source is not None and fetched is not None and overrides is None else []
        decided = self._decide(
            events, rows, scores, probability, _Why(flagged, explained, broken, lacking, unknown), policy
        )
        decisions = self._record(events, fetched, decided)
        timings.end("decide")
        if fetched is not None and not fetched.stored:
            self._watcher.saw(rows, scores)
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
        zeros = np.zeros(n, np.int64)
        events = Events(nobody, nobody, nobody, zeros, zeros, np.full((n, 2), np.nan))
        fetched = self._recording.fetch(events)
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

    def _explain(
        self, rows: Rows, scores: Scores, flagged: Sequence[int], unknown: ColdStart | None
    ) -> dict[int, Explanation]:
        """Of the flagged rows, as many as the stage's budget is predicted to hold."""
        if not flagged:
            return {}
        flagged = flagged[: max(1, self._explain_budget_ns // max(1, self._explain_row.ns))]
        contributions = self._contributions(rows[flagged])
        return {
            i: explain(rows[i], contributions[k], float(scores.log_odds[i]), unknown.names(i) if unknown else ())
            for k, i in enumerate(flagged)
        }

    def _contributions(self, rows: Rows) -> Rows:
        began_ns = time.monotonic_ns()
        contributions = self._scorer.contributions(rows)
        self._explain_row.observe((time.monotonic_ns() - began_ns) // len(rows))
        return contributions

    def _decide(
        self, events: Events, rows: Rows, scores: Scores, corrected: Rows, why: _Why, policy: Policy
    ) -> list[Recorded]:
        """Decisions of all rows, by the `corrected` probabilities."""
        names, version = self._scorer.member_names, self._scorer.version
        flagged = set(why.flagged)
        decided: list[Recorded] = []
        columns = zip(
            events.transaction_ids, corrected.tolist(), scores.members.tolist(), scores.log_odds.tolist(), strict=True
        )
        for i, (transaction_id, probability, members, log_odds) in enumerate(columns):
            kind = policy.decision(probability)
            found: list[Reason] = []
            unexplained, degraded, row = 0.0, why.lacking, None
            if i in flagged:
                kind = "review" if kind == "approve" else kind
                found = list(why.broken.get(i, ()))
                explanation = why.explained.get(i)
                if explanation is None:
                    degraded, row = [*why.lacking, _REASONS], rows[i].tobytes()
                else:
                    found += explanation.reasons
                    unexplained = explanation.unexplained
            decision = Decision(
                transaction_id, probability, kind, policy.risk_level(probability),
                dict(zip(names, members, strict=True)), found, degraded, version, unexplained,
                why.unknown.names(i) if why.unknown is not None else [],
            )  # fmt: skip
            decided.append(Recorded(decision, log_odds, row))
        return decided

    def _record(self, events: Events, fetched: Fetched | None, decided: list[Recorded]) -> list[Decision]:
        """The decisions, recorded before they are returned, or saying that they are not."""
        decisions = [one.decision for one in decided]
        if fetched is None:
            return [_degraded(decision, _FEATURES, *decision.degraded, _UNRECORDED) for decision in decisions]
        stored = self._recording.record(events, fetched, decided)
        if stored is None:
            decisions = [_degraded(decision, *decision.degraded, _UNRECORDED) for decision in decisions]
        for one in fetched.stored if stored is None else stored:
            decisions[one.row] = decode_recorded(one.decision).decision
        return decisions


@dataclass(frozen=True, slots=True)
class _Why:
    """The rows that are not approved, what moved their scores as far as there was time to ask, and rules that hold."""

    flagged: Sequence[int]
    explained: Mapping[int, Explanation]
    broken: Mapping[int, Sequence[Reason]]
    lacking: list[str]
    """What all rows had to do without."""
    unknown: ColdStart | None


def _windows(events: Events, fetched: Fetched | None) -> Windows:
    """What rules look at: nothing is known while the store does not answer, but the amount is."""
    return Windows.unknown(len(events.transaction_ids)) if fetched is None else fetched.customer


def _flagged(probability: Rows, broken: Mapping[int, Sequence[Reason]], policy: Policy) -> list[int]:
    found = np.flatnonzero(probability >= policy.review_at).tolist()
    return sorted({*found, *broken}) if broken else found


def _assemble_row(events: Events, fetched: Fetched) -> Rows:
    return assemble_rows(events, fetched.customer, fetched.terminal)


def _degraded(decision: Decision, *what: str) -> Decision:
    return msgspec.structs.replace(decision, degraded=list(what))
