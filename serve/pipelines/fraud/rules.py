"""Rules beside the model, for what there is no training data for: velocity, geography, amount.

A rule that holds makes an approval a review and says so among the reasons; it never lowers a decision. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve.features.store import Events
from serve.features.windows import LEVELS, PROFILE, Windows
from serve.pipelines.fraud.contract import Reason

Column = npt.NDArray[np.float64]

_HOUR = LEVELS.index("1h")
_WORDS: Mapping[str, str] = {
    "rule_velocity": "{value:.0f} earlier transactions of the card in the last hour; {limit:.0f} are reviewed",
    "rule_distance": "{value:.0f} km from where the card is used; {limit:.0f} km are reviewed",
    "rule_speed": "{value:.0f} km/h since the card's last place; {limit:.0f} km/h are reviewed",
    "rule_amount": "amount of {value:.2f}; {limit:.2f} is reviewed",
    "rule_new_terminal_amount": "amount of {value:.2f} at a terminal the card is new to; {limit:.2f} is reviewed",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """From what value on each rule holds; None: never."""

    velocity: int | None = None
    """Earlier transactions of the card within the hour."""
    distance: float | None = None
    """Kilometres from where the card is used on average."""
    speed: float | None = None
    """Kilometres an hour since the card's last known place."""
    amount: float | None = None
    new_terminal_amount: float | None = None
    """Amount at a terminal the card was not used at for 30 days."""

    def hits(self, events: Events, customer: Windows) -> dict[int, list[Reason]]:
        """The rules that hold for each row, as reasons, by row; rows without any are not in it."""
        found: dict[int, list[Reason]] = {}
        for name, limit in self._limits():
            value = _value(name, events, customer)
            for row in np.flatnonzero(value >= limit).tolist():
                text = _WORDS[name].format(value=value[row], limit=limit)
                found.setdefault(row, []).append(Reason(name, float(value[row]), 0.0, text))
        return found

    def _limits(self) -> list[tuple[str, float]]:
        limits = {
            "rule_velocity": self.velocity,
            "rule_distance": self.distance,
            "rule_speed": self.speed,
            "rule_amount": self.amount,
            "rule_new_terminal_amount": self.new_terminal_amount,
        }
        return [(name, limit) for name, limit in limits.items() if limit is not None]


def _value(name: str, events: Events, customer: Windows) -> Column:
    """What the rule compares; NaN, which no limit is below, where it is not known."""
    if name == "rule_velocity":
        return customer.totals[:, _HOUR].astype(np.float64)
    if name == "rule_distance":
        return customer.profile[:, PROFILE.index("km_from_home")]
    if name == "rule_speed":
        return customer.profile[:, PROFILE.index("km_per_hour")]
    amount = events.amount_e4 / 1e4
    if name == "rule_amount":
        return amount
    is_known = ~np.isnan(customer.since_last_s)  # to a card nobody has seen, every terminal is new
    is_new = is_known & (customer.profile[:, PROFILE.index("is_new_terminal")] > 0)
    return np.where(is_new, amount, np.nan)
