"""Card transactions to benchmark with: a seed, or the handbook's data set, enters; histories and request bodies leave.

The synthetic population has 5 000 customers, each with a typical amount, a rate of purchases and usual terminals among
10 000. Transaction ids hold `MARKER`, which the load generators replace by a number, so that every request is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as oip

from protos.headroom.fraud.v1 import fraud_pb2

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]

MARKER = "ID__________"
DAY_S = 86_400
HISTORY_DAYS = 30
NUM_CUSTOMERS, NUM_TERMINALS = 5_000, 10_000
_MEAN_PURCHASES_A_DAY = 1.9
_MAX_USUAL_TERMINALS = 60
_SHARE_OVER_220, _SHARE_TIMES_FIVE = 0.004, 0.004


@dataclass(frozen=True, slots=True)
class Transactions:
    """Columns in order of time; `event_s` in seconds since 1970, UTC."""

    customer: Ints
    terminal: Ints
    amount: Floats
    event_s: Ints

    def __len__(self) -> int:
        return len(self.event_s)

    def part(self, begin: int, end: int | None = None) -> Transactions:
        """Rows `begin` to `end`."""
        return Transactions(*(c[begin:end] for c in (self.customer, self.terminal, self.amount, self.event_s)))


@dataclass(frozen=True, slots=True)
class Population:
    """Who buys: per customer its share of all purchases, its typical amount and its usual terminals."""

    share: Floats
    typical_amount: Floats
    terminals: Ints
    num_terminals: Ints

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Population:
        """Amounts and rates as the handbook's simulator draws them; terminals at random."""
        rate = rng.uniform(0, 2 * _MEAN_PURCHASES_A_DAY, NUM_CUSTOMERS)
        return cls(
            share=rate / rate.sum(),
            typical_amount=rng.uniform(5, 100, NUM_CUSTOMERS),
            terminals=rng.integers(0, NUM_TERMINALS, (NUM_CUSTOMERS, _MAX_USUAL_TERMINALS)),
            num_terminals=rng.integers(2, _MAX_USUAL_TERMINALS + 1, NUM_CUSTOMERS),
        )

    def purchases(self, rng: np.random.Generator, event_s: Ints) -> Transactions:
        """One purchase at each of the times; under 1 % have the amounts of the two frauds that amounts betray."""
        n = len(event_s)
        customer = rng.choice(NUM_CUSTOMERS, n, p=self.share)
        terminal = self.terminals[customer, rng.integers(0, self.num_terminals[customer])]
        typical = self.typical_amount[customer]
        amount = np.abs(rng.normal(typical, typical / 2)) + 0.01
        kind = rng.random(n)
        amount[kind < _SHARE_TIMES_FIVE] *= 5
        is_large = kind > 1 - _SHARE_OVER_220
        amount[is_large] = rng.uniform(220, 1_000, int(is_large.sum()))
        return Transactions(customer, terminal, np.round(amount, 2), event_s)


def synthetic(seed: int, num_live: int, rate_per_s: float, now_s: int) -> tuple[Transactions, Transactions]:
    """A history of 30 days, and `num_live` transactions that follow it at `rate_per_s` with exponential gaps."""
    rng = np.random.default_rng(seed)
    population = Population.sample(rng)
    live_s = now_s + np.cumsum(rng.exponential(1 / rate_per_s, num_live)).astype(np.int64)
    num_past = int(NUM_CUSTOMERS * _MEAN_PURCHASES_A_DAY * HISTORY_DAYS)
    past_s = np.sort(_by_hour_of_day(rng, num_past)) + now_s - HISTORY_DAYS * DAY_S
    return population.purchases(rng, past_s), population.purchases(rng, live_s)


def _by_hour_of_day(rng: np.random.Generator, n: int) -> Ints:
    """Seconds within the history: any day, most of them around noon, as the handbook's simulator has it."""
    second_of_day = np.clip(rng.normal(DAY_S / 2, 20_000, n), 0, DAY_S - 1)
    return (rng.integers(0, HISTORY_DAYS, n) * DAY_S + second_of_day).astype(np.int64)


def recorded(folder: Path, num_live: int, now_s: int) -> tuple[Transactions, Transactions]:
    """The last 30 days of the handbook's `transactions.parquet`, its last `num_live` apart, moved to end now."""
    import pandas as pd

    table = pd.read_parquet(folder / "transactions.parquet").sort_values("TX_DATETIME", kind="stable")
    event_s = table["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    everything = Transactions(
        table["CUSTOMER_ID"].to_numpy(np.int64), table["TERMINAL_ID"].to_numpy(np.int64),
        table["TX_AMOUNT"].to_numpy(np.float64), event_s + (now_s - event_s[-1]),
    )  # fmt: skip
    begin = int(np.searchsorted(everything.event_s, now_s - HISTORY_DAYS * DAY_S))
    return everything.part(begin, -num_live), everything.part(-num_live)


def card_rows(seed: int, num_rows: int) -> Rows:
    """float32 [num_rows, 30] in the shape of the `creditcard` model's input: a time, 28 components, an amount."""
    rng = np.random.default_rng(seed)
    components = rng.normal(size=(num_rows, 28)) * np.linspace(2, 0.3, 28)
    columns = (rng.integers(0, 172_800, num_rows), *components.T, rng.lognormal(3, 1.5, num_rows).round(2))
    return np.stack(columns, axis=1).astype(np.float32)


def score_json(transactions: Transactions, id_prefix: str) -> Iterator[bytes]:
    """A body of `POST /v1/fraud/score` for each."""
    for fields in _fields(transactions, id_prefix):
        yield _compact(fields)


def score_batch_json(transactions: Transactions, id_prefix: str, num_items: int) -> Iterator[bytes]:
    """Bodies of `POST /v1/fraud/score:batch` with `num_items` each; a remainder is left out."""
    items = list(_fields(transactions, id_prefix))
    for begin in range(0, len(items) - num_items + 1, num_items):
        yield _compact({"transactions": items[begin : begin + num_items]})


def score_grpc(transactions: Transactions, id_prefix: str) -> Iterator[bytes]:
    """A message of `FraudService/Score` for each."""
    for fields in _fields(transactions, id_prefix):
        yield fraud_pb2.ScoreRequest(transaction=fraud_pb2.Transaction(**fields)).SerializeToString()


def score_batch_grpc(transactions: Transactions, id_prefix: str, num_items: int) -> Iterator[bytes]:
    """Messages of `FraudService/ScoreBatch` with `num_items` each; a remainder is left out."""
    items = [fraud_pb2.Transaction(**fields) for fields in _fields(transactions, id_prefix)]
    for begin in range(0, len(items) - num_items + 1, num_items):
        yield fraud_pb2.ScoreBatchRequest(transactions=items[begin : begin + num_items]).SerializeToString()


def infer_json(rows: Rows) -> Iterator[bytes]:
    """A body of the protocol's `infer` over HTTP for each row, tensors as JSON."""
    for row in rows:
        yield _compact({"inputs": [{**_input(rows), "data": row.astype(float).round(6).tolist()}]})


def infer_binary(rows: Rows) -> tuple[list[bytes], int]:
    """The same with the tensor as bytes, and the length of the JSON before it (the header's value)."""
    parameters = {"binary_data_size": rows.shape[1] * 4}
    head = _compact(
        {"inputs": [{**_input(rows), "parameters": parameters}], "parameters": {"binary_data_output": True}}
    )
    return [head + row.astype("<f4").tobytes() for row in rows], len(head)


def infer_grpc(rows: Rows, model: str, input_name: str = "input__0") -> Iterator[bytes]:
    """A `ModelInferRequest` for each row, with raw contents."""
    for row in rows:
        request = oip.ModelInferRequest(model_name=model)
        request.inputs.add(name=input_name, datatype="FP32", shape=[1, rows.shape[1]])
        request.raw_input_contents.append(row.astype("<f4").tobytes())
        yield request.SerializeToString()


def _input(rows: Rows) -> dict[str, object]:
    return {"name": "input__0", "shape": [1, rows.shape[1]], "datatype": "FP32"}


def _fields(transactions: Transactions, id_prefix: str) -> Iterator[dict[str, object]]:
    columns = (transactions.customer, transactions.terminal, transactions.amount, transactions.event_s)
    for customer, terminal, amount, event_s in zip(*(column.tolist() for column in columns), strict=True):
        yield {
            "transaction_id": id_prefix + MARKER,
            "customer_id": f"customer-{customer}",
            "terminal_id": f"terminal-{terminal}",
            "amount": amount,
            "timestamp": event_s,
        }


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
