from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server import BUDGET_MS, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it. Its budgets are wide: what is answered is tested here,
    on any machine; how fast is for benchmarks/.
    """
    running = Server(
        tmp_path_factory.mktemp("server"),
        pipelines__fraud__budget_ms=BUDGET_MS,
        pipelines__fraud__stages__explain=BUDGET_MS / 4,
        pipelines__fraud__stages__decide=BUDGET_MS / 2,
    )
    try:
        yield running.start()
    finally:
        running.stop()
