"""Plain twin of `kernels.windows` and `kernels.profiles`: the definitions, word for word, on a list of every event.

Takes one event after another; gives what was known before it. Called by tests only, so it is written to be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kernels.profiles import EARTH_KM, MAX_HOME, MAX_TERMINALS
from kernels.windows import BUCKET_S, LATENESS_S, RETAINED_S, RISK_DELAY_S, RISK_WINDOW_S, WINDOW_S

HOUR_S = 3_600
WEEK_HOURS, MONTH_HOURS, LATENESS_HOURS = 7 * 24, 30 * 24, LATENESS_S // HOUR_S
SHORTEST_JOURNEY_S = 60

Place = tuple[float, float]
"""Latitude and longitude, in degrees."""
Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a key before an event: counts and sums (in ten-thousandths) per level; then of each risk window
    the count, and how many of them were fraud.
    """

    counts: tuple[int, ...]
    sums: tuple[int, ...]
    risk_counts: tuple[int, ...]
    frauds: tuple[int, ...]
    since_last_s: float
    is_late: bool


@dataclass(slots=True)
class Event:
    """One event entered; `num_frauds` is how often a mark called it fraud."""

    second: int
    amount_e4: int
    num_frauds: int = 0


@dataclass(slots=True)
class KeyHistory:
    """Every event entered for one key."""

    events: list[Event] = field(default_factory=list)

    def see(self, now_s: int, amount_e4: int) -> Seen:
        """Gives what is known before the event, then enters it, unless it is over 24 h behind the newest."""
        inside = [self._inside(now_s, level, 0, window) for level, window in enumerate(WINDOW_S)]
        risky = [self._inside(now_s, len(BUCKET_S) - 1, RISK_DELAY_S, window) for window in RISK_WINDOW_S]
        newest_s = self._newest_s()
        is_late = newest_s is not None and now_s < newest_s - LATENESS_S
        if not is_late:
            self.events.append(Event(now_s, amount_e4))
        return Seen(
            counts=tuple(len(events) for events in inside),
            sums=tuple(sum(event.amount_e4 for event in events) for events in inside),
            risk_counts=tuple(len(events) for events in risky),
            frauds=tuple(sum(event.num_frauds for event in events) for events in risky),
            since_last_s=math.nan if newest_s is None else float(max(0, now_s - newest_s)),
            is_late=is_late,
        )

    def mark(self, number: int, by: int) -> None:
        """Calls an entered event fraud (1) or takes that back (-1), where it is still retained."""
        if self._is_retained(self.events[number], len(BUCKET_S) - 1):
            self.events[number].num_frauds += by

    def _newest_s(self) -> int | None:
        return max((event.second for event in self.events), default=None)

    def _is_retained(self, event: Event, level: int) -> bool:
        """Whether it could be inside a window of an event that is as late as may be."""
        newest_s = self._newest_s()
        assert newest_s is not None
        bucket_s = BUCKET_S[level]
        return event.second // bucket_s > newest_s // bucket_s - (RETAINED_S[level] + LATENESS_S) // bucket_s

    def _inside(self, now_s: int, level: int, delay_s: int, window_s: int) -> list[Event]:
        """The retained events whose bucket is in (end - window, end], where `end` is the bucket a delay ago."""
        bucket_s = BUCKET_S[level]
        end = now_s // bucket_s - delay_s // bucket_s
        return [
            event
            for event in self.events
            if end - window_s // bucket_s < event.second // bucket_s <= end and self._is_retained(event, level)
        ]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is usual of a customer before an event, beside it; NaN where no place is known."""

    num_terminals_7d: int
    is_new_terminal: bool
    km_from_home: float
    km_per_hour: float


@dataclass(slots=True)
class CustomerHistory:
    """The terminals of one customer, each with the hour it was last seen in; the home; and where the customer was last.

    `home` is no unit vector: it is a mean of some.
    """

    terminals: dict[int, int] = field(default_factory=dict)
    num_places: int = 0
    home: Vector = (0.0, 0.0, 0.0)
    last_place: Place = (0.0, 0.0)
    last_s: int = 0
    newest_s: int | None = None

    def see(self, now_s: int, terminal: int, place: Place) -> Profile:
        """Gives what is known before the event, then enters it, unless it is over 24 h behind the newest."""
        seen = self._seen(now_s, terminal, place)
        if self.newest_s is None or now_s >= self.newest_s - LATENESS_S:
            self.newest_s = max(now_s, self.newest_s or 0)
            self._enter_terminal(now_s // HOUR_S, terminal)
            if _is_known(place):
                self._enter_place(now_s, place)
        return seen

    def _seen(self, now_s: int, terminal: int, place: Place) -> Profile:
        retained = {number: hour for number, hour in self.terminals.items() if self._is_retained(hour)}
        hour = now_s // HOUR_S
        from_home = per_hour = math.nan
        if _is_known(place) and self.num_places:
            if any(self.home):
                from_home = _angle(_vector(place), self.home) * EARTH_KM
            if now_s >= self.last_s:
                passed_s = max(now_s - self.last_s, SHORTEST_JOURNEY_S)
                per_hour = _angle(_vector(place), _vector(self.last_place)) * EARTH_KM / (passed_s / HOUR_S)
        return Profile(
            num_terminals_7d=sum(last > hour - WEEK_HOURS for last in retained.values()),
            is_new_terminal=terminal not in retained or retained[terminal] <= hour - MONTH_HOURS,
            km_from_home=from_home,
            km_per_hour=per_hour,
        )

    def _is_retained(self, hour: int) -> bool:
        assert self.newest_s is not None
        return hour > self.newest_s // HOUR_S - (MONTH_HOURS + LATENESS_HOURS)

    def _enter_terminal(self, hour: int, terminal: int) -> None:
        """Of too many, the one that was not seen for longest makes room; of those alike, the lowest number."""
        if terminal not in self.terminals and len(self.terminals) == MAX_TERMINALS:
            del self.terminals[min(self.terminals, key=lambda number: (self.terminals[number], number))]
        self.terminals[terminal] = max(hour, self.terminals.get(terminal, 0))

    def _enter_place(self, now_s: int, place: Place) -> None:
        """The mean of the first places; a later one moves it by a fixed share."""
        self.num_places += 1
        share = 1 / min(self.num_places, MAX_HOME)
        x, y, z = (home + (here - home) * share for home, here in zip(self.home, _vector(place), strict=True))
        self.home = (x, y, z)
        if now_s >= self.last_s:
            self.last_place, self.last_s = place, now_s


def row(amount_e4: int, event_s: int, customer: Seen, terminal: Seen, profile: Profile) -> list[float]:
    """One row of the model, before rounding to float32; NaN for what is not known."""
    time = datetime.fromtimestamp(event_s, UTC)
    amount = amount_e4 / 1e4
    customer_averages, terminal_averages = _averages(customer), _averages(terminal)
    risks = zip(terminal.frauds, terminal.risk_counts, strict=True)
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
        *(frauds / count if count else math.nan for frauds, count in risks),
        *terminal.frauds,
        profile.num_terminals_7d,
        profile.is_new_terminal,
    ]


def _averages(seen: Seen) -> list[float]:
    return [total / n / 1e4 if n else math.nan for n, total in zip(seen.counts, seen.sums, strict=True)]


def _ratio(amount: float, average: float) -> float:
    return amount / average if average > 0 else math.nan


def _is_known(place: Place) -> bool:
    return not any(math.isnan(degrees) for degrees in place)


def _vector(place: Place) -> Vector:
    """The place on the unit sphere."""
    latitude, longitude = math.radians(place[0]), math.radians(place[1])
    return (
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    )


def _angle(a: Vector, b: Vector) -> float:
    """Between two directions, exact for near and for opposite ones: atan2 of the cross and the dot product."""
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return math.atan2(math.hypot(*cross), sum(x * y for x, y in zip(a, b, strict=True)))
