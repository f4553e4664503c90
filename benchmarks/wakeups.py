"""What does it cost to hand a request to another thread, and how long may a thread keep the interpreter?

Two choices of the native listener rest on it. Who reads a request should answer it, as long as requests come one by one:
`handover` measures that against a condition variable, an eventfd, and spinning before the sleep. And
`sys.setswitchinterval`: how long a busy Python thread may keep the listener's from the interpreter; measured on the echo
front end with a thread beside it that never rests.

    python -m benchmarks.wakeups [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.generator import Load, write_bodies
from benchmarks.measure import Row, measure, median_row, save
from benchmarks.subject import ROOT
from benchmarks.transport import Frontend

HANDOVERS = ("same", "condvar", "eventfd", "spin-5", "spin-20", "spin-50")
CONNECTIONS = (1, 16)
SWITCH_INTERVALS_MS = (0.1, 0.5, 1.0, 5.0)
SOURCE = ROOT / "benchmarks" / "wakeups" / "handover.cpp"
BINARY = ROOT / ".build" / "handover"


def build() -> None:
    """Compiles it."""
    BINARY.parent.mkdir(exist_ok=True)
    subprocess.run(["g++", "-O2", "-std=c++17", "-pthread", "-o", str(BINARY), str(SOURCE)], check=True)


def handovers(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Every way, in turns; medians."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for mode in HANDOVERS:
                words = [str(BINARY), mode, str(connections), str(seconds)]
                row = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                row["requests_per_s"] = row.pop("requests") / seconds
                found.setdefault(f"{mode}, connections: {connections}", []).append(row)
                print(f"  {mode}, {connections}: {row}", flush=True)
    return {
        name: {figure: round(statistics.median(row[figure] for row in rows), 2) for figure in rows[0]}
        for name, rows in found.items()
    }


def switch_intervals(folder: Path, rounds: int, seconds: float) -> dict[str, Row]:
    """The echo front end beside a busy thread of its own process."""
    body = write_bodies(folder / "body.bin", [bytes(120)])
    found: dict[str, list[Row]] = {}
    for number in range(rounds):
        for ms in SWITCH_INTERVALS_MS:
            with Frontend("native", folder / f"{number}-{ms}", busy_switch_ms=ms) as front:
                load = Load(front.url, body, 1, seconds, warmup_s=0.5, protocol="grpc", streams=1)
                for streams in (1, 16):
                    row = measure(front, replace(load, streams=streams))
                    name = f"switch interval {ms} ms, streams: {streams}"
                    print(f"  {name}: {row['ok_per_s']:.0f}/s, p99 {row['p99_ms']} ms", flush=True)
                    found.setdefault(name, []).append(row)
    return {name: {**median_row(rows), "name": name} for name, rows in found.items()}


def main() -> None:
    """Measures, writes results/wakeups.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, not written to results/")
    options = parser.parse_args()
    rounds, seconds = (1, 0.5) if options.quick else (3, 3.0)
    build()
    with tempfile.TemporaryDirectory(prefix="headroom-wakeups-") as name:
        payload: dict[str, Any] = {
            "question": "what does a hand-over to another thread cost, and how long may a thread keep the interpreter?",
            "rounds": rounds, "row_s": seconds,
            "handovers": handovers(rounds, seconds),
            "switch_intervals": switch_intervals(Path(name), rounds, seconds),
        }  # fmt: skip
    print(f"written to {save('wakeups', payload, is_quick=options.quick)}")


if __name__ == "__main__":
    main()
