"""Drives `headroom-load`: a `Load` enters, its measured JSON leaves. Used by every benchmark of a running server.

See benchmarks/load/README.md for what is measured, and how.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from benchmarks.bodies import MARKER
from benchmarks.subject import ROOT

BINARY = ROOT / ".build" / "headroom-load"
_IDS_PER_RUN = 10**9
_unused_ids: Iterator[int] = count(_IDS_PER_RUN, _IDS_PER_RUN)


def next_ids() -> int:
    """The first of 10^9 transaction numbers that no earlier run of this process used."""
    return next(_unused_ids)


@dataclass(frozen=True, slots=True)
class Load:
    """One run of the generator. `rate` None is a closed loop; `items` rows are in each request."""

    url: str
    bodies: Path
    connections: int
    duration_s: float
    warmup_s: float = 2.0
    rate: float | None = None
    protocol: Literal["http1", "grpc"] = "http1"
    streams: int = 1
    items: int = 1
    deadline_ms: float | None = None
    headers: tuple[str, ...] = ()


def run(load: Load) -> dict[str, Any]:
    """The generator's JSON; raises RuntimeError with its words when it could not measure."""
    ended = subprocess.run(_command(load), cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"headroom-load ended with {ended.returncode}: {ended.stderr}")
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def write_bodies(path: Path, bodies: Iterable[bytes]) -> Path:
    """Writes the generator's file: uint32 little-endian length and bytes, for each body."""
    with path.open("wb") as file:
        for body in bodies:
            file.write(len(body).to_bytes(4, "little") + body)
    return path


def _command(load: Load) -> list[str]:
    words = [
        str(BINARY), "--url", load.url, "--protocol", load.protocol, "--bodies", str(load.bodies),
        "--connections", str(load.connections), "--streams", str(load.streams), "--items", str(load.items),
        "--duration-s", str(load.duration_s), "--warmup-s", str(load.warmup_s), "--timeout-ms", "2000",
        "--unique-marker", MARKER, "--unique-start", str(next_ids()), "--json", "-",
    ]  # fmt: skip
    words += ["--mode", "closed"] if load.rate is None else ["--mode", "open", "--rate", f"{load.rate:.3f}"]
    if load.deadline_ms is not None:
        words += ["--deadline-ms", str(load.deadline_ms)]
    for header in load.headers:
        words += ["--header", header]
    return words
