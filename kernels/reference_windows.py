"""Plain twin of `kernels.windows`: the definitions, word for word, on a list of every event.

Takes one event after another; gives the windows before it. Called by tests only, so it is written to be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kernels.windows import BUCKET_S, LATENESS_S, WINDOW_S


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a key before an event; counts and sums (in ten-thousandths) per level."""

    counts: tuple[int, ...]
    sums: tuple[int, ...]
    since_last_s: float
    is_late: bool


@dataclass(slots=True)
class KeyHistory:
    """Every event entered for one key, as (second, amount in ten-thousandths)."""

    events: list[tuple[int, int]] = field(default_factory=list)

    def see(self, now_s: int, amount_e4: int) -> Seen:
        """Gives what is known before the event, then enters it, unless it is over 24 h behind the newest."""
        inside = [self._inside(now_s, bucket, window) for bucket, window in zip(BUCKET_S, WINDOW_S, strict=True)]
        newest_s = max((event_s for event_s, _ in self.events), default=None)
        is_late = newest_s is not None and now_s < newest_s - LATENESS_S
        if not is_late:
            self.events.append((now_s, amount_e4))
        return Seen(
            counts=tuple(len(amounts) for amounts in inside),
            sums=tuple(sum(amounts) for amounts in inside),
            since_last_s=math.nan if newest_s is None else float(max(0, now_s - newest_s)),
            is_late=is_late,
        )

    def _inside(self, now_s: int, bucket: int, window: int) -> list[int]:
        """Amounts of the events whose bucket is retained and in (current - window, current]."""
        newest_s = max((event_s for event_s, _ in self.events), default=0)
        current, newest = now_s // bucket, newest_s // bucket
        return [
            amount
            for event_s, amount in self.events
            if current - window // bucket < event_s // bucket <= current
            and event_s // bucket > newest - (window + LATENESS_S) // bucket
        ]


def row(amount_e4: int, event_s: int, customer: Seen, terminal: Seen) -> list[float]:
    """One row of the model, before rounding to float32; NaN for what is not known."""
    time = datetime.fromtimestamp(event_s, UTC)
    amount = amount_e4 / 1e4
    customer_averages, terminal_averages = _averages(customer), _averages(terminal)
    return [
        amount,
        time.hour,
        time.hour < 6,
        time.weekday() >= 5,
        *customer.counts,
        *customer_averages,
        *terminal.counts,
        *terminal_averages,
        _ratio(amount, customer_averages[2]),
        _ratio(amount, customer_averages[3]),
        _ratio(amount, terminal_averages[3]),
        customer.since_last_s,
        terminal.since_last_s,
    ]


def _averages(seen: Seen) -> list[float]:
    return [total / n / 1e4 if n else math.nan for n, total in zip(seen.counts, seen.sums, strict=True)]


def _ratio(amount: float, average: float) -> float:
    return amount / average if average > 0 else math.nan
