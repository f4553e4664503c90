"""Imported by the server that forks the stores' processes: what each of them would do first."""

from __future__ import annotations

import lmdb  # noqa: F401

from serve.features.windows import warm_up
from tests.unit.features import store_cases  # noqa: F401

warm_up()
