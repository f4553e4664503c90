"""How long the server took, stage by stage: the `Server-Timing` header or trailing metadata as a value.

In: the header's text. Out: a ServerTiming, which every Decision carries. Called by both wires.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_DURATION = re.compile(r"\s*;\s*dur\s*=\s*([0-9.]+)\s*(?=;|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServerTiming:
    """Milliseconds by stage in the order the stages ran; empty when the server sent none."""

    stages_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_ms(self) -> float:
        """All stages together, the time in the server's queue included."""
        return sum(self.stages_ms.values())


def parse_server_timing(text: str | None) -> ServerTiming:
    """Reads `queue;dur=0.1, score;dur=0.41` (W3C Server Timing, section 2); an entry without a duration is left out.

    It never raises: a decision must not be lost over its timing.
    """
    stages_ms: dict[str, float] = {}
    # Descriptions are quoted and may hold commas; they are dropped, so they go before the split.
    for entry in _QUOTED.sub("", text or "").split(","):
        name, separator, parameters = entry.strip().partition(";")
        duration_ms = _duration_ms(separator + parameters)
        if name and duration_ms is not None:
            stages_ms[name.strip()] = duration_ms
    return ServerTiming(stages_ms)


def _duration_ms(parameters: str) -> float | None:
    found = _DURATION.search(parameters)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None
