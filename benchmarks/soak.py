"""Does the native transport's memory stay flat at full load?

The echo front end under a closed loop of 64 streams on 8 connections for ten minutes; its resident memory and descriptors
every ten seconds. The first half minute, in which buffers and the allocator's heaps find their size, is not compared.

    python -m benchmarks.soak [--minutes 10] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.generator import Load, write_bodies
from benchmarks.measure import measure, save
from benchmarks.subject import Subject
from benchmarks.transport import Frontend

EVERY_S = 10.0
SETTLED_S = 30.0


def watch(subject: Subject, began_s: float, is_over: threading.Event, seen: list[dict[str, float]]) -> None:
    """Resident memory, descriptors and threads of the server, until it is over."""
    (process,) = subject.processes()
    while not is_over.wait(EVERY_S):
        seen.append({
            "at_s": round(time.monotonic() - began_s), "rss_mb": round(process.memory_info().rss / 1e6, 2),
            "descriptors": process.num_fds(), "threads": process.num_threads(),
        })  # fmt: skip


def main() -> None:
    """Measures, writes results/soak.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="a minute, not written to results/")
    options = parser.parse_args()
    seconds = 60.0 if options.quick else options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="headroom-soak-") as name, Frontend("native", Path(name) / "echo") as front:
        body = write_bodies(Path(name) / "body.bin", [bytes(120)])
        load = Load(front.url, body, 8, seconds, warmup_s=1.0, protocol="grpc", streams=8)
        seen: list[dict[str, float]] = []
        is_over = threading.Event()
        watcher = threading.Thread(target=watch, args=(front, time.monotonic(), is_over, seen))
        watcher.start()
        row = measure(front, load)
        is_over.set()
        watcher.join()
    settled = [one["rss_mb"] for one in seen if one["at_s"] >= SETTLED_S]
    growth = {"from_mb": settled[0], "to_mb": settled[-1], "share": round(settled[-1] / settled[0] - 1, 4)}
    payload: dict[str, Any] = {
        "question": "does the native transport's memory stay flat at full load?",
        "minutes": seconds / 60, "requests": round(row["ok_per_s"] * seconds), "row": row, "growth": growth, "seen": seen,
    }  # fmt: skip
    print(f"{payload['requests']} requests, {growth}; written to {save('soak', payload, is_quick=options.quick)}")


if __name__ == "__main__":
    main()
