"""Every transaction of the handbook in time order, with the features the server would have had."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, it finds the features the server computes

from serve.features.backfill import backfill
from serve.features.windows import to_ten_thousandths

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

DAY_S = 86_400
SCENARIOS = {1: "amount over 220", 2: "compromised terminal", 3: "compromised card"}


@dataclass(frozen=True, slots=True)
class History:
    """Columns of transactions. `day` counts from the first of all."""

    rows: Floats
    customer_id: Ints
    day: Ints
    is_fraud: Flags
    scenario: npt.NDArray[np.int8]

    def where(self, inside: Flags | Ints) -> History:
        """The transactions of a mask or of numbers."""
        return History(*(getattr(self, field.name)[inside] for field in fields(self)))

    def days(self, begin: int, end: int) -> History:
        """The transactions of days from `begin` to before `end`."""
        return self.where((self.day >= begin) & (self.day < end))

    def without(self, customers: Collection[int]) -> History:
        """The transactions of everybody else."""
        return self.where(~np.isin(self.customer_id, list(customers)))

    def frauds_customers(self) -> set[int]:
        """Who was defrauded."""
        return set(self.customer_id[self.is_fraud].tolist())


def load(folder: Path) -> History:
    """Reads `transactions.parquet` and computes the features, point in time: labels count from 7 days on."""
    import pandas as pd

    table = pd.read_parquet(folder / "transactions.parquet").sort_values("TX_DATETIME", kind="stable")
    event_s = table["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    amount_e4 = to_ten_thousandths(table["TX_AMOUNT"].to_numpy(np.float64))
    customer_id = table["CUSTOMER_ID"].to_numpy(np.int64)
    is_fraud = table["TX_FRAUD"].to_numpy() == 1
    return History(
        rows=backfill(customer_id, table["TERMINAL_ID"].to_numpy(np.int64), event_s, amount_e4, is_fraud).rows,
        customer_id=customer_id,
        day=event_s // DAY_S - event_s[0] // DAY_S,
        is_fraud=is_fraud,
        scenario=table["TX_FRAUD_SCENARIO"].to_numpy(np.int8),
    )
