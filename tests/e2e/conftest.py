from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server import WIDE_BUDGETS, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it. Its budgets are wide: what is answered is tested here,
    on any machine; how fast is for benchmarks/.
    """
    running = Server(tmp_path_factory.mktemp("server"), **WIDE_BUDGETS)
    try:
        yield running.start()
    finally:
        running.stop()
