"""The ladder: what a pipeline leaves out, step by step, when the whole of it does not fit the time that is left.

Rung 0 is everything. Each further rung names what it leaves out and which share of rung 0's time it still takes until
its own time has been measured. Pure: the flow decides what a rung means, forming decides who takes which.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve.budgets.estimate import BatchEstimate

_TRIAL_EVERY = 32


@dataclass(frozen=True, slots=True)
class Rung:
    """One step. `name` appears in `degraded` of the answers that took it; rung 0's is empty."""

    name: str
    share: float
    """Of rung 0's time, until measured: 0 < share <= 1."""


class Ladder:
    """A pipeline's rungs with what each was measured to take."""

    def __init__(self, rungs: tuple[Rung, ...], *, quantile: float = 0.9, prior_ns: int = 200_000) -> None:
        self.rungs = rungs
        self._estimates = [BatchEstimate(quantile, prior_ns=max(1, int(prior_ns * rung.share))) for rung in rungs]
        self._is_measured = [False] * len(rungs)
        self._num_passed_over = 0

    def observe(self, rung: int, items: int, duration_ns: int) -> None:
        """Takes the time a batch took whose best-served items were on `rung`."""
        self._estimates[rung].observe(items, duration_ns)
        self._is_measured[rung] = True

    def predict_ns(self, rung: int, items: int) -> int:
        """Time `items` on `rung` will take. A lower rung is never predicted to be slower than the full answer."""
        full_ns = self._estimates[0].predict_ns(items)
        if rung == 0:
            return full_ns
        if not self._is_measured[rung]:
            return int(full_ns * self.rungs[rung].share)
        return min(full_ns, self._estimates[rung].predict_ns(items))

    def is_trial_due(self) -> bool:
        """Whether this request, which rung 0 is predicted not to fit, should try it all the same: every 32nd does.

        Only running batches correct an estimate; one that keeps them from running would stand for ever.
        """
        self._num_passed_over += 1
        return self._num_passed_over % _TRIAL_EVERY == 0

    def name(self, rung: int) -> str:
        """What stands in `degraded` for an answer on `rung`."""
        return self.rungs[rung].name
