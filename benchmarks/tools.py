"""Other people's load generators, for figures to check ours by: wrk, h2load and Locust.

An address enters; rates, latencies and the tool's own CPU leave. All three run closed loops: see benchmarks/README.md
for what that hides.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generator import next_ids
from benchmarks.subject import run_tool

Figures = dict[str, Any]


def missing(tool: str) -> bool:
    """Whether a tool is not installed here."""
    return shutil.which(tool) is None


def wrk(url: str, bodies: Path, connections: int, seconds: float) -> Figures:
    """HTTP/1.1; every request has an id of its own. `bodies` has one JSON object per line."""
    output, cores = run_tool([
        "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "2s", "-s", "benchmarks/unique_ids.lua", url,
        "--", str(bodies), str(next_ids()),
    ])  # fmt: skip
    found = json.loads(output.strip().splitlines()[-1])
    return {
        "tool": "wrk", "connections": connections,
        "ok_per_s": round((found["requests"] - found["not_2xx"]) / found["seconds"], 1),
        "p50_ms": found["p50_us"] / 1e3, "p99_ms": found["p99_us"] / 1e3, "max_ms": found["max_us"] / 1e3,
        "not_2xx": found["not_2xx"], "failed": found["failed"], "generator_cores": round(cores, 3),
    }  # fmt: skip


def h2load(url: str, message: bytes, connections: int, seconds: float, folder: Path) -> Figures:
    """gRPC, one call at a time on each connection; every call sends the same message, and thus the same id."""
    body, log = folder / "h2load.bin", folder / "h2load.tsv"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    output, cores = run_tool([
        "h2load", "-t1", f"-c{connections}", "-m1", "-D", f"{seconds:g}", "--warm-up-time=1", f"--log-file={log}",
        "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers", url,
    ])  # fmt: skip
    rate = re.search(r"finished in [^,]*, ([\d.]+) req/s", output)
    if rate is None:
        raise RuntimeError(f"h2load says no rate: {output[-1000:]}")
    latency_us = np.loadtxt(log, usecols=2, ndmin=1)
    p50_ms, p99_ms, max_ms = (np.percentile(latency_us, [50, 99, 100]) / 1e3).round(3).tolist()
    return {
        "tool": "h2load", "connections": connections, "ok_per_s": float(rate[1]),
        "p50_ms": p50_ms, "p99_ms": p99_ms, "max_ms": max_ms, "generator_cores": round(cores, 3),
    }  # fmt: skip


def locust(host: str, users: int, seconds: float, folder: Path) -> Figures:
    """HTTP users of benchmarks/locustfile.py, all started at once; milliseconds are whole, as Locust counts them."""
    prefix = folder / f"locust-{users}"
    _, cores = run_tool([
        sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py", "--headless", "--only-summary",
        "-u", str(users), "-r", str(users), "-t", f"{seconds:g}s", "--reset-stats", "--host", host,
        "--csv", str(prefix), "--exit-code-on-error", "0",
    ])  # fmt: skip
    with Path(f"{prefix}_stats.csv").open(newline="") as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    requests, failures = int(total["Request Count"]), int(total["Failure Count"])
    return {
        "users": users, "requests": requests, "failures": failures,
        "ok_per_s": round(float(total["Requests/s"]) - float(total["Failures/s"]), 1),
        "p50_ms": float(total["50%"]), "p95_ms": float(total["95%"]), "p99_ms": float(total["99%"]),
        "max_ms": round(float(total["Max Response Time"]), 1), "generator_cores": round(cores, 3),
    }  # fmt: skip
