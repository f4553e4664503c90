"""The limit beside which our figures are read: uvicorn (uvloop, httptools) with an application that does nothing.

Machines differ by several times in what a request costs before anybody has looked at it. A bare echo, measured in the
same run, tells how much of that a figure is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.subject import ROOT, Subject, free_ports


def bare_uvicorn(folder: Path) -> Subject:
    """One process that answers `{}` to everything."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    return Subject(
        "bare uvicorn",
        [
            sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(ROOT / "benchmarks" / "peers" / "echo"),
            "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
        ],
        folder,
        f"http://127.0.0.1:{port}/",
    )  # fmt: skip
