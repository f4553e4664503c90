"""The fraud pipeline's pure work: columns of a batch, risk levels, reasons in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve.backends.base import Scores
from serve.errors import InvalidInput
from serve.features.store import Events
from serve.features.windows import FEATURES, Flags, Windows, assemble, to_ten_thousandths
from serve.pipelines.fraud.contract import (
    MAX_FUTURE_S,
    MIN_EVENT_S,
    RULES,
    DecisionKind,
    Reason,
    RiskLevel,
    Transaction,
    Unknown,
)
from serve.pipelines.fraud.quality import AS_SCORED, Calibration

Rows = npt.NDArray[np.float32]
_MAX_REASONS = 4
_AMOUNT = FEATURES.index("amount")
_RATIO_COLUMNS = tuple(
    (i, FEATURES.index(name.removeprefix("amount_over_")))
    for i, name in enumerate(FEATURES)
    if name.startswith("amount_over_")
)
_CUSTOMER_COLUMNS = np.array([i for i, name in enumerate(FEATURES) if name.startswith("customer_")])
_TERMINAL_COLUMNS = np.array([i for i, name in enumerate(FEATURES) if name.startswith("terminal_")])
_OWN_COLUMNS = tuple(FEATURES.index(name) for name in ("amount", "hour_of_day", "is_night", "is_weekend"))


@dataclass(frozen=True, slots=True)
class Policy:
    """Where decisions and risk levels begin, as probabilities, and what stands in for a customer nobody can look up."""

    review_at: float
    decline_at: float
    risk_levels: tuple[float, float, float]
    """Where medium, high and critical begin."""
    group_averages: Rows
    """float32 [F]."""

    def decision(self, probability: float) -> DecisionKind:
        """What to do with the transaction."""
        if probability >= self.decline_at:
            return "decline"
        return "review" if probability >= self.review_at else "approve"

    def risk_level(self, probability: float) -> RiskLevel:
        """How to call the probability."""
        medium, high, critical = self.risk_levels
        if probability >= high:
            return "critical" if probability >= critical else "high"
        return "medium" if probability >= medium else "low"


def timestamp_error(transaction: Transaction, event_s: int, now_s: int) -> InvalidInput | None:
    """A time too far in the future, which would poison its customer's windows, or (written as a date) too early."""
    if MIN_EVENT_S <= event_s <= now_s + MAX_FUTURE_S:
        return None
    when = f"{event_s - now_s} s in the future" if event_s > now_s else f"{event_s} s since 1970"
    return InvalidInput(f"timestamp is {when}; allowed: {RULES['timestamp']}", field="timestamp")


def to_events(transactions: Sequence[Transaction], event_s: Sequence[int]) -> Events:
    """Columns of transactions whose ids are unique."""
    return Events(
        [t.transaction_id for t in transactions],
        [t.customer_id for t in transactions],
        [t.terminal_id for t in transactions],
        np.array(event_s, dtype=np.int64),
        to_ten_thousandths(np.array([t.amount for t in transactions], dtype=np.float64)),
        _places(transactions),
    )


def _places(transactions: Sequence[Transaction]) -> npt.NDArray[np.float64]:
    """Latitude and longitude, NaN where one of them is not known."""
    places = np.full((len(transactions), 2), np.nan)
    for row, one in enumerate(transactions):
        if one.latitude is not None and one.longitude is not None:
            places[row] = one.latitude, one.longitude
    return places


def assemble_rows(events: Events, customer: Windows, terminal: Windows) -> Rows:
    """The model's rows, float32 [n, F]."""
    rows = np.empty((len(events.event_s), len(FEATURES)), np.float32)
    assemble(events.amount_e4, events.event_s, customer, terminal, rows)
    return rows


def average_rows(events: Events, policy: Policy) -> Rows:
    """Rows for when the store cannot be read: the transaction's own columns, group averages for the rest.

    How the amount compares is computed from those averages: an average ratio would make every amount look usual.
    """
    n = len(events.event_s)
    unknown = Windows.unknown(n)
    own = assemble_rows(events, unknown, unknown)
    rows = np.tile(policy.group_averages, (n, 1))
    rows[:, _OWN_COLUMNS] = own[:, _OWN_COLUMNS]
    for ratio, average in _RATIO_COLUMNS:
        rows[:, ratio] = rows[:, _AMOUNT] / rows[:, average]
    return rows


def calibrated(scores: Scores, calibration: Calibration) -> Rows:
    """Probabilities as labels say they should be, float32 [n]."""
    if calibration == AS_SCORED:
        return scores.probability
    return np.asarray(1 / (1 + np.exp(-calibration(scores.log_odds))), np.float32)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The features that raised a score most, at most four, largest first; and the log-odds no feature accounts for."""

    reasons: list[Reason]
    unexplained: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Who of each row was never seen before, bool [n] each."""

    customer: Flags
    terminal: Flags

    def names(self, row: int) -> list[Unknown]:
        """For the answer."""
        names: list[Unknown] = ["customer"] if self.customer[row] else []
        return [*names, "terminal"] if self.terminal[row] else names


def cold_start(rows: Rows, customer: Windows, terminal: Windows, policy: Policy) -> ColdStart | None:
    """Puts group averages where a customer or terminal has no history; None where everybody has one."""
    unknown = ColdStart(np.isnan(customer.since_last_s), np.isnan(terminal.since_last_s))
    if not (unknown.customer.any() or unknown.terminal.any()):
        return None
    for is_unknown, columns in ((unknown.customer, _CUSTOMER_COLUMNS), (unknown.terminal, _TERMINAL_COLUMNS)):
        rows[np.ix_(is_unknown, columns)] = policy.group_averages[columns]
    for ratio, average in _RATIO_COLUMNS:
        is_unknown = unknown.customer if average in _CUSTOMER_COLUMNS else unknown.terminal
        rows[is_unknown, ratio] = rows[is_unknown, _AMOUNT] / rows[is_unknown, average]
    return unknown


def explain(row: Rows, contributions: Rows, log_odds: float, unknown: Sequence[Unknown] = ()) -> Explanation:
    """In words, from contributions to the log-odds, float32 [F + 1], the expected value last. Of who is `unknown`, the
    words say that it is no history of theirs.
    """
    order = np.argsort(-contributions[: len(FEATURES)], kind="stable")[:_MAX_REASONS]
    found = [
        Reason(
            FEATURES[i],
            _number(row[i]),
            float(contributions[i]),
            reason_text(FEATURES[i], float(row[i])) + _instead(FEATURES[i], unknown),
        )
        for i in order.tolist()
        if contributions[i] > 0
    ]
    return Explanation(found, log_odds - float(contributions.sum(dtype=np.float64)))


def _number(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


_LEVEL_WORDS: Mapping[str, str] = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
_FIXED_WORDS: Mapping[str, str] = {
    "amount": "amount of {value:.2f}",
    "hour_of_day": "at {value:.0f} o'clock UTC",
    "is_night": "at night: {value:.0f}",
    "is_weekend": "on a weekend: {value:.0f}",
    "amount_over_customer_average_7d": "amount is {value:.1f} times the card's average of 7 days",
    "amount_over_customer_average_30d": "amount is {value:.1f} times the card's average of 30 days",
    "amount_over_terminal_average_30d": "amount is {value:.1f} times the terminal's average of 30 days",
    "customer_seconds_since_last": "{value:.0f} s since the card's last transaction",
    "terminal_seconds_since_last": "{value:.0f} s since the terminal's last transaction",
    "customer_terminals_7d": "{value:.0f} terminals the card was used at in the last 7 days",
    "is_new_terminal": "a terminal the card was not used at in 30 days: {value:.0f}",
}


def reason_text(feature: str, value: float) -> str:
    """A feature and its value in words, for the person who has to explain the decision."""
    if feature in _FIXED_WORDS:
        return (
            "not known: " + feature.replace("_", " ") if np.isnan(value) else _FIXED_WORDS[feature].format(value=value)
        )
    who, what, level = feature.split("_")
    owner = "card" if who == "customer" else "terminal"
    if what in ("risk", "frauds"):
        return _risk_text(what, level, value)
    if what == "count":
        return f"{value:.0f} transactions of the {owner} in the last {_LEVEL_WORDS[level]}"
    if np.isnan(value):
        return f"no transaction of the {owner} in the last {_LEVEL_WORDS[level]}"
    return f"{owner}'s average amount in the last {_LEVEL_WORDS[level]} is {value:.2f}"


def _instead(feature: str, unknown: Sequence[Unknown]) -> str:
    """What is added about a feature whose owner was never seen before."""
    for owner, name in (("customer", "card"), ("terminal", "terminal")):
        if owner in unknown and f"{owner}_" in feature:
            return f" (the {name} is new: a group average)"
    return ""


def _risk_text(what: str, level: str, value: float) -> str:
    """Risk ends 7 days ago, where labels have arrived."""
    when = f"{level.removesuffix('d')} days up to a week ago"
    if np.isnan(value):
        return f"no transaction of the terminal in the {when}"
    if what == "risk":
        return f"{value:.1%} of the terminal's transactions in the {when} were fraud"
    return f"{value:.0f} frauds at the terminal in the {when}"
