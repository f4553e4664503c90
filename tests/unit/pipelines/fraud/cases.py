"""A feature store in memory, a scorer that follows the amount, and a flow over both: what the flow is tested on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serve.backends.base import Scores
from serve.batching.runner import Batch
from serve.budgets.timings import Timings
from serve.features.store import UNLABELLED, Events, Fetched, Labelled, LogEntry, Stored, StoreFailed
from serve.features.windows import FEATURES, Windows
from serve.pipelines.fraud.contract import Transaction
from serve.pipelines.fraud.flow import FraudFlow
from serve.pipelines.fraud.recording import Recording
from serve.pipelines.fraud.rules import Rules
from serve.pipelines.fraud.stages import Policy, Rows

MS = 1_000_000
NOW_S = 1_700_000_000
AVERAGES = np.arange(len(FEATURES), dtype=np.float32) + 100
POLICY = Policy(0.3, 0.7, (0.2, 0.5, 0.9), AVERAGES)
AMOUNT = FEATURES.index("amount")


def transaction(transaction_id: str = "t1", amount: float = 10.0, **fields: Any) -> Transaction:
    """A transaction whose probability of fraud, as `AmountScorer` sees it, is a hundredth of its amount."""
    return Transaction(transaction_id, fields.pop("customer_id", "c1"), "m1", amount, fields.pop("timestamp", NOW_S))


class MemoryStore:
    """Implements `FeatureStore`. What each call raises may be scripted; remembers what it was given."""

    def __init__(self) -> None:
        self.decisions: dict[str, bytes] = {}
        self.fetch_failure: StoreFailed | None = None
        self.commit_failure: StoreFailed | None = None
        self.meanwhile: dict[str, bytes] = {}
        """What another process records between `fetch` and `commit`."""
        self.fetches: list[list[str]] = []
        self.commits: list[list[str | None]] = []
        self.deadlines_ns: list[int] = []
        self.customer: Windows | None = None
        """What is known of every row's customer."""
        self.labels: dict[str, int] = {}
        self.erased: list[str] = []

    def fetch(self, events: Events) -> Fetched:
        self.fetches.append(list(events.transaction_ids))
        if self.fetch_failure is not None:
            raise self.fetch_failure
        n = len(events.transaction_ids)
        ids = enumerate(events.transaction_ids)
        stored = [Stored(row, self.decisions[one]) for row, one in ids if one in self.decisions]
        return Fetched(stored, self.customer or Windows.unknown(n), Windows.unknown(n), object())

    def commit(
        self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched, deadline_ns: int
    ) -> list[Stored]:
        self.deadlines_ns.append(deadline_ns)
        pairs = list(zip(events.transaction_ids, decisions, strict=True))
        self.commits.append([one for one, decision in pairs if decision is not None])
        if self.commit_failure is not None:
            raise self.commit_failure
        self.decisions |= self.meanwhile
        others = [Stored(row, self.meanwhile[one]) for row, (one, _) in enumerate(pairs) if one in self.meanwhile]
        self.decisions |= {one: d for one, d in pairs if d is not None and one not in self.meanwhile}
        return others

    def find(self, transaction_id: str) -> LogEntry | None:
        if self.fetch_failure is not None:
            raise self.fetch_failure
        decision = self.decisions.get(transaction_id)
        if decision is None:
            return None
        label = self.labels.get(transaction_id, UNLABELLED)
        return LogEntry(transaction_id, "c1", "m1", NOW_S, 123_400, decision, label=label)

    def label(self, labels: Mapping[str, bool]) -> list[Labelled]:
        found = [Labelled(self.find(name)) for name in labels]
        self.labels |= {name: int(fraud) for name, fraud in labels.items() if name in self.decisions}
        return found

    def erase(self, customer_id: str) -> None:
        if self.commit_failure is not None:
            raise self.commit_failure
        self.erased.append(customer_id)

    def check(self) -> None: ...

    def close(self) -> None: ...


class AmountScorer:
    """The probability is a hundredth of the amount; the amount alone moves it. A member says the opposite."""

    version = "model:7"
    member_names = ("for", "against")

    def __init__(self) -> None:
        self.scored: list[Rows] = []
        self.explained: list[int] = []
        self.on_explain: Callable[[], None] = lambda: None

    def score(self, rows: Rows) -> Scores:
        self.scored.append(rows.copy())
        probability = (rows[:, AMOUNT] / 100).astype(np.float32)
        bounded = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
        log_odds = np.log(bounded / (1 - bounded))
        return Scores(probability, log_odds, np.stack([probability, 1 - probability], axis=1))

    def contributions(self, rows: Rows) -> Rows:
        self.explained.append(len(rows))
        self.on_explain()
        contributions = np.full((len(rows), len(FEATURES) + 1), -0.5, np.float32)
        contributions[:, AMOUNT] = rows[:, AMOUNT] / 100
        return contributions


class Sink:
    """Keeps what the flow counts."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.states: dict[str, float] = {}

    def count_store(self, event: str, n: int = 1) -> None:
        self.events.extend([event] * n)

    def set_store_state(self, name: str, value: float) -> None:
        self.states[name] = value


class Watcher:
    """Keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def saw(self, rows: Rows, scores: Scores) -> None:
        self.seen.append(len(rows))


class FlowBench:
    """A flow and everything it talks to."""

    def __init__(self, **options: Any) -> None:
        self.store, self.scorer, self.sink, self.watcher = MemoryStore(), AmountScorer(), Sink(), Watcher()
        self.recording = Recording(self.store, self.sink, commit_limit_ns=17 * MS)
        self.now_s = float(NOW_S)
        options = {
            "rungs": ("reasons", "features"),
            "explain_budget_ns": 10_000 * MS,
            "rules": Rules(),
        } | options
        self.flow = FraudFlow(
            self.recording, self.scorer, POLICY, self.watcher, wall_clock_s=lambda: self.now_s, **options
        )  # fmt: skip

    def run(self, *transactions: Transaction, rung: int = 0) -> list[Any]:
        self.timings = Timings()
        batch = Batch(rung, "", time.monotonic_ns() + 3_600_000 * MS, self.timings)
        return list(self.flow.run(transactions, batch))
