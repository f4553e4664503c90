"""`Timings`: how long each stage of one batch took. A value the flow fills and every sink reads.

Sinks: `Server-Timing` headers, gRPC trailing metadata, metrics, the estimator, the access log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], int]


@dataclass(slots=True)
class Timings:
    """Stage durations of one batch in nanoseconds, in the order the stages ran. A skipped stage has no entry."""

    clock: Clock = time.monotonic_ns
    stages_ns: dict[str, int] = field(default_factory=dict)
    _mark_ns: int = 0

    def start(self) -> None:
        """Begins the first stage now."""
        self._mark_ns = self.clock()

    def end(self, stage: str) -> None:
        """Ends `stage` now and begins the next: stages follow each other without a gap."""
        now_ns = self.clock()
        self.stages_ns[stage] = self.stages_ns.get(stage, 0) + now_ns - self._mark_ns
        self._mark_ns = now_ns

    @property
    def total_ns(self) -> int:
        """All stages together."""
        return sum(self.stages_ns.values())


def server_timing(stages_ns: dict[str, int]) -> str:
    """The `Server-Timing` value (W3C Server Timing, section 2): `, score;dur=0.4, decide;dur=0.2` in milliseconds.

    Made once per batch, to follow each request's own `queue;dur=…`.
    """
    return "".join([f", {stage};dur={ns / 1e6:.3f}" for stage, ns in stages_ns.items()])
