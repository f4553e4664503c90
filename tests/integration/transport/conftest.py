from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernels.transport import why_unavailable
from tests.integration.transport.interop_server import InteropServer

collect_ignore_glob = ["test_*.py"] if why_unavailable() else []


@pytest.fixture
def server() -> Iterator[InteropServer]:
    with InteropServer() as one:
        yield one
