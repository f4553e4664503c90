"""Transactions as a client sends them; ids are new in every run, so that no stored decision answers."""

from __future__ import annotations

import time
from itertools import count
from typing import Any
from uuid import uuid4

_RUN = uuid4().hex[:12]
_next = count().__next__


def new_id(kind: str = "e2e") -> str:
    """An id nobody has used."""
    return f"{kind}-{_RUN}-{_next()}"


def transaction(**changes: Any) -> dict[str, Any]:
    """A good transaction of a new customer at a new terminal; `changes` replace or add fields."""
    made = {
        "transaction_id": new_id(),
        "customer_id": new_id("customer"),
        "terminal_id": new_id("terminal"),
        "amount": 42.5,
        "timestamp": float(int(time.time())),
    }
    return {**made, **changes}
