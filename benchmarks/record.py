"""Writes a benchmark's result beside what is needed to judge it: machine, commit, versions, date.

Enters: a name and the figures. Leaves: `benchmarks/results/<name>.json`. Called by every benchmark; the README's tables
are generated from these files.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("ray", "numba", "numpy", "xgboost-cpu", "treelite", "tl2cgen", "uvicorn", "grpcio", "lmdb", "tritonclient")


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, kernel, Python, and the load while the figures were taken."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "niceness": os.nice(0),
    }


def write_result(name: str, payload: dict[str, Any]) -> Path:
    """Writes `payload` and its circumstances as `results/<name>.json`; returns the file."""
    result = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "versions": _versions(),
        **payload,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return file


def _cpu_model() -> str:
    """As /proc/cpuinfo names it; the architecture where it gives no name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """The commit, "+" when the working tree differs from it; None outside a repository or before its first commit."""
    head, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain")
    return head and head + ("+" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=RESULTS.parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
