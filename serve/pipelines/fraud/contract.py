"""What enters and leaves the fraud pipeline and what of it is allowed; the same for every protocol."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

MAX_ID_CHARS = 96
MIN_EVENT_S = 946_684_800
"""2000-01-01: earlier than any card network's replay."""
MAX_FUTURE_S = 86_400
"""A terminal's clock may be ahead by as much as windows can still take lateness: a transaction further in the future
would make its customer's true ones too late to count."""
MAX_AMOUNT = 1e9

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Seconds = Annotated[float, Meta(ge=MIN_EVENT_S, le=(1 << 36) - 1)]
DecisionKind = Literal["approve", "review", "decline"]
RiskLevel = Literal["low", "medium", "high", "critical"]
Unknown = Literal["customer", "terminal"]


class Transaction(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A card transaction while it is being authorised. `transaction_id` is its idempotency key."""

    transaction_id: Id
    customer_id: Id
    terminal_id: Id
    amount: Annotated[float, Meta(ge=0, le=MAX_AMOUNT)]
    """In units of `currency`."""
    timestamp: Seconds | datetime
    """Of the transaction itself: seconds since 1970 in UTC, or RFC 3339 (UTC when it names no offset)."""
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$", max_length=3)] | None = None
    merchant_category: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    channel: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    latitude: Annotated[float, Meta(ge=-90, le=90)] | None = None
    longitude: Annotated[float, Meta(ge=-180, le=180)] | None = None

    @property
    def event_s(self) -> int:
        """Whole seconds since 1970, UTC."""
        when = self.timestamp
        if isinstance(when, datetime):
            when = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
        return int(when)


_ID_RULE = f"a string of 1 to {MAX_ID_CHARS} characters"
RULES: dict[str, str] = {
    "transaction_id": _ID_RULE,
    "customer_id": _ID_RULE,
    "terminal_id": _ID_RULE,
    "amount": f"a number from 0 to {MAX_AMOUNT:g}",
    "timestamp": f"RFC 3339, or seconds since 1970 from {MIN_EVENT_S} to one day from now",
    "currency": "three capital letters (ISO 4217)",
    "merchant_category": "a string of 1 to 32 characters",
    "channel": "a string of 1 to 32 characters",
    "latitude": "a number from -90 to 90",
    "longitude": "a number from -180 to 180",
}
"""What is allowed in each field, in words, for error messages."""


class Reason(Struct, frozen=True, gc=False):
    """One feature's part in a score. `contribution` is to the log-odds; positive raises the probability of fraud."""

    feature: str
    value: float | None
    contribution: float
    text: str


class Decision(Struct, frozen=True, gc=False):
    """The answer to one transaction. `degraded` names what was left out; empty when nothing was.

    `scores` are those of the ensemble's members. `unexplained` is what members that cannot say why added to the
    log-odds, where there are reasons. `cold_start` names who was never seen before, customer or terminal: group
    averages stand in for a history.
    """

    transaction_id: str
    fraud_probability: float
    decision: DecisionKind
    risk_level: RiskLevel
    scores: dict[str, float]
    reasons: list[Reason]
    degraded: list[str]
    model_version: str
    unexplained: float = 0.0
    cold_start: list[Unknown] = []
