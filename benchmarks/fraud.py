"""How many card transactions does one ingress replica score, and how late, at rest, at its limit and beyond it?

Targets (two cores, load generator included): 12 000 HTTP requests/s with p99 < 10 ms; 10 000 transactions/s in batches of
32, open loop for a minute, p99 < 50 ms and no error; at three times the capacity ≥ 90 % of the goodput for batches, and at
twice ≥ 60 % for single HTTP requests. Every row says what the generator itself used, and what each stage took.

    python -m benchmarks fraud [--quick] [--data FOLDER_WITH_transactions.parquet]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import bodies, tools
from benchmarks.generator import Load, write_bodies
from benchmarks.history import feed
from benchmarks.limit import bare_uvicorn
from benchmarks.measure import Row, measure, save, show
from benchmarks.plot import plot_fraud
from benchmarks.server import HeadroomServer, Stretch
from benchmarks.subject import environment_of

SCORE, SCORE_BATCH = "/v1/fraud/score", "/v1/fraud/score:batch"
GRPC_SCORE = "headroom.fraud.v1.FraudService/Score"
GRPC_SCORE_BATCH = "headroom.fraud.v1.FraudService/ScoreBatch"
JSON = ("content-type: application/json",)
CONNECTIONS = (1, 16, 64)
USERS = (1, 10, 50, 100)
BATCH_ITEMS = 32
BURST_PER_S = 10_000
SHARES_OF_CAPACITY = (0.25, 0.5, 0.75, 0.9, 1.0)
BUDGET_MS = 50.0
SEED = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each kind of row takes, in seconds, and how much there is to send."""

    row_s: float
    burst_s: float
    tool_s: float
    history: int | None
    """Transactions of the history that are fed; None is all of them."""
    num_live: int


FULL = Plan(row_s=10, burst_s=60, tool_s=8, history=None, num_live=64_000)
QUICK = Plan(row_s=2, burst_s=3, tool_s=2, history=10_000, num_live=6_400)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The generators' files."""

    unary: Path
    batch: Path
    grpc: Path
    grpc_batch: Path
    grpc_repeated: Path
    lines: Path
    message: bytes


class Bench:
    """Measures one row after the other on one running server."""

    def __init__(self, server: HeadroomServer, traffic: Traffic, plan: Plan, folder: Path) -> None:
        self.server, self.traffic, self.plan, self.folder = server, traffic, plan, folder

    def row(self, name: str, load: Load) -> Row:
        """One run of our generator, with the server's stages during it."""
        before = self.server.reading()
        measured = measure(self.server, load)
        stretch = Stretch(before, self.server.reading())
        row = {
            "name": name, **measured, "refusals": stretch.refusals("fraud"),
            "mean_batch_items": stretch.mean_batch_items("fraud"), "stages": stretch.stages("fraud"),
            "outcomes": stretch.outcomes("fraud"),
        }  # fmt: skip
        show(row)
        return row

    def unary(self, connections: int, rate: float | None = None) -> Load:
        """Single transactions over HTTP/1.1."""
        return Load(self.server.http(SCORE), self.traffic.unary, connections, self.plan.row_s, rate=rate,
                    deadline_ms=BUDGET_MS, headers=JSON)  # fmt: skip

    def batch(self, connections: int, rate: float | None = None, duration_s: float | None = None) -> Load:
        """Batches of 32 over HTTP/1.1; `rate` in requests."""
        return Load(self.server.http(SCORE_BATCH), self.traffic.batch, connections, duration_s or self.plan.row_s,
                    rate=rate, items=BATCH_ITEMS, deadline_ms=BUDGET_MS, headers=JSON)  # fmt: skip

    def grpc(self, connections: int, messages: Path) -> Load:
        """Single transactions over gRPC, one call at a time on each connection."""
        return Load(self.server.grpc(GRPC_SCORE), messages, connections, self.plan.row_s, protocol="grpc",
                    deadline_ms=BUDGET_MS)  # fmt: skip

    def grpc_open(self, rate: float, duration_s: float | None = None) -> Load:
        """Single transactions over gRPC, on a schedule."""
        load = replace(self.grpc(8, self.traffic.grpc), streams=256, rate=rate)
        return replace(load, duration_s=duration_s or load.duration_s)

    def closed_loop(self) -> dict[str, list[Row]]:
        """What the server does when every answer triggers the next request."""
        return {
            "http": [self.row(f"HTTP, connections: {n}", self.unary(n)) for n in CONNECTIONS],
            "grpc": [self.row(f"gRPC, connections: {n}", self.grpc(n, self.traffic.grpc)) for n in CONNECTIONS],
            "grpc_streams": [
                self.row(f"gRPC, 8 connections, streams: {n}", replace(self.grpc(8, self.traffic.grpc), streams=n // 8))
                for n in (64, 256)
            ],
            "batch": [self.row(f"batches of 32, connections: {n}", self.batch(n)) for n in (1, 16)],
        }

    def limit(self) -> Row:
        """A uvicorn that does nothing, given the same requests."""
        with bare_uvicorn(self.folder / "echo") as echo:
            row = {"name": "bare uvicorn, connections: 64",
                   **measure(echo, replace(self.unary(64), url=echo.ready_url))}  # fmt: skip
        show(row)
        return row

    def burst(self) -> Row:
        """10 000 transactions/s in batches of 32."""
        load = self.batch(64, BURST_PER_S / BATCH_ITEMS, self.plan.burst_s)
        return self.row("10 000 transactions/s in batches of 32", load)

    def grpc_bursts(self) -> list[Row]:
        """The same over gRPC, and one by one."""
        batches = Load(
            self.server.grpc(GRPC_SCORE_BATCH), self.traffic.grpc_batch, 8, self.plan.burst_s, protocol="grpc",
            streams=32, rate=BURST_PER_S / BATCH_ITEMS, items=BATCH_ITEMS, deadline_ms=BUDGET_MS,
        )  # fmt: skip
        return [
            self.row("10 000 transactions/s in batches of 32 over gRPC", batches),
            self.row("10 000 transactions/s over gRPC", self.grpc_open(BURST_PER_S, self.plan.burst_s)),
        ]

    def curve(self, capacity: dict[str, float]) -> dict[str, list[Row]]:
        """Latency at shares of the capacity, open loop. Connections suffice for the generator never to wait for one."""
        return {
            "http": [self._at("HTTP", self.unary(256, x * capacity["http"]), x) for x in SHARES_OF_CAPACITY],
            "batch": [self._at("batches of 32", self.batch(64, x * capacity["batch"]), x) for x in SHARES_OF_CAPACITY],
        }

    def _at(self, kind: str, load: Load, share: float) -> Row:
        return {**self.row(f"{kind}, {share:.0%} of capacity", load), "share_of_capacity": share}

    def overload(self, capacity: dict[str, float], goodput: dict[str, float]) -> list[Row]:
        """More than the capacity: what is still answered within the budget, against what was at capacity."""
        loads = [
            ("batch", "batches of 32", 3, self.batch(256, 3 * capacity["batch"])),
            ("grpc", "gRPC", 3, self.grpc_open(3 * capacity["grpc"])),
            ("http", "HTTP", 2, self.unary(1024, 2 * capacity["http"])),
            ("http", "HTTP", 3, self.unary(1024, 3 * capacity["http"])),
        ]
        rows = []
        for kind, title, times, load in loads:
            row = self.row(f"overload: {title}, {times} × capacity", load)
            share = round(row["goodput_per_s"] / goodput[kind], 3)
            rows.append({**row, "kind": kind, "times_capacity": times, "goodput_share": share})
            print(f"    goodput {share:.0%} of the capacity's", flush=True)
        return rows

    def cross_checks(self) -> dict[str, Any]:
        """The same by other tools. h2load cannot number its messages: both see the stored decision's path there."""
        server, traffic, seconds = self.server, self.traffic, self.plan.tool_s
        http = [] if tools.missing("wrk") else [
            tools.wrk(server.http(SCORE), traffic.lines, n, seconds) for n in CONNECTIONS
        ]  # fmt: skip
        grpc = [] if tools.missing("h2load") else [
            {
                "h2load": tools.h2load(server.grpc(GRPC_SCORE), traffic.message, n, seconds, self.folder),
                "headroom_load": self.row(f"gRPC, one repeated id, connections: {n}", self.grpc(n, traffic.grpc_repeated)),
            }
            for n in CONNECTIONS
        ]  # fmt: skip
        return {"wrk": http, "stored_decision_path": grpc}

    def locust(self) -> list[dict[str, Any]]:
        """Python users: most of what they see at 50 and more is Locust's own core."""
        host = self.server.http("")
        return [tools.locust(host, n, max(5.0, self.plan.row_s), self.folder) for n in USERS]


def write_traffic(folder: Path, live: bodies.Transactions) -> Traffic:
    """The live transactions in every form a generator takes."""
    repeated = next(bodies.score_grpc(live, "")).replace(bodies.MARKER.encode(), b"repeated-id_")
    lines = folder / "unary.jsonl"
    lines.write_bytes(b"".join(body + b"\n" for body in bodies.score_json(live, "w-")))
    return Traffic(
        unary=write_bodies(folder / "unary.bin", bodies.score_json(live, "u-")),
        batch=write_bodies(folder / "batch.bin", bodies.score_batch_json(live, "b-", BATCH_ITEMS)),
        grpc=write_bodies(folder / "grpc.bin", bodies.score_grpc(live, "g-")),
        grpc_batch=write_bodies(folder / "grpc-batch.bin", bodies.score_batch_grpc(live, "h-", BATCH_ITEMS)),
        grpc_repeated=write_bodies(folder / "repeated.bin", islice([repeated], 1)),
        lines=lines,
        message=repeated,
    )


def measure_all(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Every part of the result, in the order of measuring."""
    closed = bench.closed_loop()
    best = {kind: max(closed[kind], key=lambda row: row["goodput_per_s"]) for kind in ("http", "batch")}
    best["grpc"] = max(closed["grpc"] + closed["grpc_streams"], key=lambda row: row["goodput_per_s"])
    capacity = {kind: row["ok_per_s"] for kind, row in best.items()}
    yield "closed_loop", closed
    yield "bare_uvicorn", bench.limit()
    yield "capacity_per_s", capacity
    yield "burst", bench.burst()
    yield "grpc_bursts", bench.grpc_bursts()
    yield "curve", bench.curve(capacity)
    yield "overload", bench.overload(capacity, {kind: row["goodput_per_s"] for kind, row in best.items()})
    yield "cross_checks", bench.cross_checks()
    yield "locust", bench.locust()
    yield "budgets", bench.server.budgets()["fraud"]


def main() -> None:
    """Starts a server, fills its windows, measures, writes results/fraud.json and fraud.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rows, not written to results/")
    parser.add_argument("--data", type=Path, help="folder with transactions.parquet, instead of synthetic customers")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    now_s = int(time.time())
    if options.data:
        past, live = bodies.recorded(options.data, plan.num_live, now_s)
    else:
        past, live = bodies.synthetic(SEED, plan.num_live, BURST_PER_S, now_s)
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        folder = Path(name)
        traffic = write_traffic(folder, live)
        with HeadroomServer(folder / "server") as server:
            print(f"the server answers after {server.start_s:.1f} s; filling the windows", flush=True)
            fed = feed(server, past if plan.history is None else past.part(-plan.history))
            print(f"  {fed}", flush=True)
            payload = {
                "question": "how many transactions does one ingress replica score, and how late?",
                "traffic": str(options.data or f"synthetic, seed {SEED}"), "history": asdict(fed),
                "ingress_replicas": 1, "server": environment_of(server), "budget_ms": BUDGET_MS,
                **dict(measure_all(Bench(server, traffic, plan, folder))),
            }  # fmt: skip
    file = save("fraud", payload, is_quick=options.quick)
    print(f"written to {file} and {plot_fraud(json.loads(file.read_text()), file.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
