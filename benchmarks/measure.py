"""One row of a result: a subject and a load enter; rates, latencies and the CPU of both sides leave.

Used by the benchmarks of running servers, so that every row of every result has the same fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import generator
from benchmarks.generator import Load
from benchmarks.record import machine, write_result
from benchmarks.subject import ROOT, CpuWindow, Subject

Row = dict[str, Any]
QUICK_RESULTS = ROOT / ".build" / "quick"


def measure(subject: Subject, load: Load) -> Row:
    """Runs the load; the server's CPU is that of the measured window, per answer of any status."""
    window = CpuWindow(subject, load.warmup_s, load.duration_s)
    window.start()
    result = generator.run(load)
    cores = window.cores()
    answered_per_s = result["completed"] / load.duration_s
    return {
        "loop": "closed" if load.rate is None else "open",
        "connections": load.connections,
        "offered_per_s": None if load.rate is None else round(load.rate, 1),
        "duration_s": load.duration_s,
        "ok_per_s": result["rate_achieved"],
        "items": load.items,
        "items_per_s": result["rows_per_s"],
        **_latencies_ms(result["latency_us"], ""),
        **_latencies_ms(result["latency_refused_us"], "refused_"),
        "deadline_ms": load.deadline_ms,
        "goodput_per_s": result["goodput_per_s"],
        "by_status": result["by_status"],
        "failed": {kind: n for kind, n in result["failed"].items() if n},
        "server_cores": round(cores, 3),
        "server_cpu_us_per_request": round(cores / answered_per_s * 1e6, 1) if answered_per_s else None,
        "generator_cores": result["generator"]["cpu_cores"],
        "generator_lag_p99_us": (result["generator"]["schedule_lag_us"] or {}).get("p99"),
    }


def median_row(rounds: list[Row]) -> Row:
    """The median of each figure over rounds of one measurement; counts add up, and the rest is the first round's."""
    row = dict(rounds[0])
    for key, value in row.items():
        values = [one[key] for one in rounds]
        if isinstance(value, dict):
            row[key] = {name: sum(one.get(name, 0) for one in values) for name in {n for one in values for n in one}}
        elif isinstance(value, float) and None not in values:
            row[key] = round(median(values), 3)
    return {**row, "rounds": len(rounds)}


def show(row: Row) -> None:
    """One line of progress."""
    refused = {status: n for status, n in row["by_status"].items() if status not in ("200", "0")}
    print(
        f"  {row['name']:44} {row['items_per_s']:9.0f}/s  p50 {_ms(row['p50_ms'])}  p99 {_ms(row['p99_ms'])}"
        f"  cores {row['server_cores']:.2f}+{row['generator_cores']:.2f}"
        + (f"  refused {refused}" if refused else "") + (f"  FAILED {row['failed']}" if row["failed"] else ""),
        flush=True,
    )  # fmt: skip


def save(name: str, payload: dict[str, Any], *, is_quick: bool) -> Path:
    """Writes the result; a quick one, whose figures say little, outside the results that are committed."""
    if not is_quick:
        return write_result(name, payload)
    QUICK_RESULTS.mkdir(parents=True, exist_ok=True)
    file = QUICK_RESULTS / f"{name}.json"
    file.write_text(json.dumps({"benchmark": name, "quick": True, "machine": machine(), **payload}, indent=1) + "\n")
    return file


def _latencies_ms(latency_us: dict[str, float] | None, prefix: str) -> Row:
    names = ("p50", "p95", "p99", "p99_9", "max")
    return {f"{prefix}{n}_ms": None if latency_us is None else round(latency_us[n] / 1e3, 3) for n in names}


def _ms(value: float | None) -> str:
    return "      –" if value is None else f"{value:7.2f} ms"
