"""Who goes together: from the arrivals that wait to the batch that should run now. Pure; the clock is passed in.

Enters: waiting arrivals in order of arrival, the time, what the ladder predicts. Leaves: the batch with its rung, and
what is refused, dropped or left waiting. Called by the runner before every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from serve.batching.arrival import Arrival
from serve.budgets.ladder import Ladder

_MIN_SHARE_UNDER_LOAD = 4
"""While more waits than one batch holds, no batch is made smaller than a quarter: small ones would cost the throughput
that everybody else's deadline needs."""


@dataclass(slots=True)
class Formed:
    """The decision for one batch. Every waiting arrival is in exactly one of the four lists."""

    run: list[Arrival] = field(default_factory=list)
    rung: int = 0
    refused: list[Arrival] = field(default_factory=list)
    dropped: list[Arrival] = field(default_factory=list)
    """Answered meanwhile, cancelled or past their deadline: their listener answers them on time by itself."""
    later: list[Arrival] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        """Rows in the batch."""
        return sum([a.items for a in self.run])


def form(waiting: Sequence[Arrival], now_ns: int, ladder: Ladder, max_items: int) -> Formed:
    """Forms the next batch of at most `max_items` rows (an arrival larger than that runs alone).

    When everybody fits the predicted time, all go. An arrival that does not (a tight one) goes first, in a smaller
    batch of tight ones; where that does not help, on the first rung that fits; where none does, it is refused. The
    others wait for the next batch: one tight request never degrades its neighbours.
    """
    formed = Formed()
    head = _split_head(waiting, now_ns, max_items, formed)
    fitting_ns = now_ns + ladder.predict_ns(0, sum([a.items for a in head]))
    tight = [a for a in head if a.context.deadline.at_ns < fitting_ns]
    if not tight:
        formed.run = head
        return formed
    min_items = max_items // _MIN_SHARE_UNDER_LOAD if formed.later else 1
    candidates = _refuse_hopeless(tight, now_ns, ladder, min_items, formed)
    if candidates:
        _run_tight_first(candidates, now_ns, ladder, formed)
        _fill(head, min_items, now_ns, ladder, formed)
    else:
        refused = set(map(id, formed.refused))
        formed.run = [a for a in head if id(a) not in refused]
        return formed
    chosen = {id(a) for a in formed.run} | {id(a) for a in formed.refused}
    formed.later = [a for a in head if id(a) not in chosen] + formed.later
    return formed


def _split_head(waiting: Sequence[Arrival], now_ns: int, max_items: int, formed: Formed) -> list[Arrival]:
    head: list[Arrival] = []
    num_items = 0
    for at, arrival in enumerate(waiting):
        context = arrival.context
        if arrival.is_answered or context.cancelled or context.deadline.at_ns <= now_ns:
            formed.dropped.append(arrival)
        elif head and num_items + arrival.items > max_items:
            formed.later.extend(waiting[at:])
            break
        else:
            head.append(arrival)
            num_items += arrival.items
    return head


def _refuse_hopeless(
    tight: list[Arrival], now_ns: int, ladder: Ladder, min_items: int, formed: Formed
) -> list[tuple[int, Arrival]]:
    """Pairs of (first rung that fits in the smallest batch allowed, arrival); those that fit none are refused."""
    candidates = []
    for arrival in tight:
        rung = _first_fitting_rung(arrival, now_ns, ladder, max(min_items, arrival.items))
        if rung is None:
            formed.refused.append(arrival)
        else:
            candidates.append((rung, arrival))
    return candidates


def _first_fitting_rung(arrival: Arrival, now_ns: int, ladder: Ladder, num_items: int) -> int | None:
    left_ns = arrival.context.deadline.at_ns - now_ns
    fitting = next((r for r in range(len(ladder.rungs)) if ladder.predict_ns(r, num_items) <= left_ns), None)
    return 0 if fitting != 0 and ladder.is_trial_due() else fitting


def _fill(head: list[Arrival], min_items: int, now_ns: int, ladder: Ladder, formed: Formed) -> None:
    """Fills a batch on the full rung up to the smallest size allowed; a lower rung would degrade its neighbours."""
    chosen = {id(a) for a in formed.run} | {id(a) for a in formed.refused}
    num_items = formed.num_items
    left_ns = formed.run[0].context.deadline.at_ns - now_ns
    for arrival in head:
        if formed.rung > 0 or num_items >= min_items:
            return
        if id(arrival) not in chosen and ladder.predict_ns(0, num_items + arrival.items) <= left_ns:
            formed.run.append(arrival)
            num_items += arrival.items


def _run_tight_first(candidates: list[tuple[int, Arrival]], now_ns: int, ladder: Ladder, formed: Formed) -> None:
    """Fills the batch with the most urgent arrival and those that share its rung, as long as all of them fit."""
    candidates.sort(key=lambda c: c[1].context.deadline.at_ns)
    rung, first = candidates[0]
    formed.rung, formed.run = rung, [first]
    num_items = first.items
    left_ns = first.context.deadline.at_ns - now_ns
    for other_rung, arrival in candidates[1:]:
        if other_rung == rung and ladder.predict_ns(rung, num_items + arrival.items) <= left_ns:
            formed.run.append(arrival)
            num_items += arrival.items
