"""A store in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.features.embedded import EmbeddedStore
from tests.unit.features.store_cases import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    one = open_store(path)
    yield one
    one.close()
