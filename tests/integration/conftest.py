"""The embedded store's fixtures, for those who do not make their own."""

from __future__ import annotations

from tests.unit.features.conftest import path, store

__all__ = ["path", "store"]
