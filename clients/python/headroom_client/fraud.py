"""What goes into and comes out of the fraud pipeline: frozen values without a protocol's shape.

Made by the user (Transaction) and by the wires (Decision, ItemError); both wires encode and decode exactly these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Literal, NotRequired, TypedDict

from headroom_client.errors import InvalidInput
from headroom_client.timing import ServerTiming

DecisionName = Literal["approve", "review", "decline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A card transaction to score. `transaction_id` is the idempotency key: the same id gets the stored decision.

    `amount` is in units of `currency` (ISO 4217); `timestamp` is the transaction's own time, seconds since
    1970-01-01T00:00:00Z or an aware datetime; `merchant_category` is an ISO 18245 code; coordinates are in degrees.
    The server checks the ranges. Raises InvalidInput for what cannot be sent: a naive datetime, NaN, infinity.
    """

    transaction_id: str
    customer_id: str
    terminal_id: str
    amount: float
    timestamp: float | datetime
    currency: str | None = None
    merchant_category: str | None = None
    channel: str | None = None
    latitude: float | None = None
    longitude: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.timestamp, datetime) and self.timestamp.utcoffset() is None:
            raise InvalidInput(
                "timestamp is a datetime without a time zone; allowed: an aware datetime or seconds since 1970 in UTC",
                field="timestamp",
            )
        for name in ("amount", "timestamp_s", "latitude", "longitude"):
            value = getattr(self, name)
            if value is not None and not isfinite(value):
                field = name.removesuffix("_s")
                raise InvalidInput(f"{field} is {value}; allowed: a finite number", field=field)

    @property
    def timestamp_s(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z."""
        return self.timestamp.timestamp() if isinstance(self.timestamp, datetime) else self.timestamp


class TransactionFields(TypedDict):
    """Transaction's fields as keyword arguments, so that `score(transaction_id=…, …)` is checked by type."""

    transaction_id: str
    customer_id: str
    terminal_id: str
    amount: float
    timestamp: float | datetime
    currency: NotRequired[str | None]
    merchant_category: NotRequired[str | None]
    channel: NotRequired[str | None]
    latitude: NotRequired[float | None]
    longitude: NotRequired[float | None]


@dataclass(frozen=True, slots=True)
class Reason:
    """One feature's part in a decision; `contribution` is in log-odds, `text` is for people. `value` is NaN where the
    server did not know it; a rule's contribution is 0.
    """

    feature: str
    value: float
    contribution: float
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one transaction.

    `scores` holds each model's own score; `risk_level` is low, medium, high or critical; `degraded` names what was left
    out to stay inside the budget and is empty when nothing was. `server_timing` belongs to the whole call: items of one
    batch share it, items of a stream have an empty one. `request_id` finds the call in the server's log.
    """

    transaction_id: str
    fraud_probability: float
    decision: DecisionName
    risk_level: str
    scores: Mapping[str, float]
    reasons: tuple[Reason, ...]
    degraded: tuple[str, ...]
    model_version: str
    server_timing: ServerTiming
    request_id: str
    unexplained: float = 0.0
    """Part of the log-odds that comes from models that cannot say why."""
    cold_start: tuple[str, ...] = ()
    """Who was never seen before: customer, terminal."""


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item of a batch or stream has no decision; the other items are not affected. A value, never raised.

    `kind` and `field` are those of HeadroomClientError. `transaction_id` is None where the server could not read one.
    """

    kind: str
    message: str
    transaction_id: str | None = None
    field: str | None = None
