"""What does a batch cost in the embedded feature store? Read and recorded: 1, 32 and 256 transactions at a time.

Target, on an idle core: at most 25 µs per transaction at 256, and 150 µs for one. The store holds 5,000 customers and
10,000 terminals with 30 days of history and 300,000 decisions; every transaction has an id of its own, at random, which
is the worst order for an index. The deadline is never the bound. Processor time is of both threads, reader and writer.

    python -m benchmarks.feature_store
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.record import write_result
from serve.features.embedded import EmbeddedStore
from serve.features.store import Events, FeatureStore
from serve.features.windows import warm_up

NUM_CUSTOMERS, NUM_TERMINALS, NUM_DECISIONS = 5_000, 10_000, 300_000
HISTORY_S = 30 * 86_400
BEGIN_S = 1_700_000_000
DECISION = bytes(range(220))
NEVER_NS = 1 << 62
ROWS = (1, 32, 256)
ROUNDS, ROUND_S = 8, 0.5


def transactions(num_rows: int, at_s: int, random: np.random.Generator) -> Events:
    """A batch at that time."""
    return Events(
        [f"{number:032x}" for number in random.integers(0, 1 << 62, num_rows)],
        [f"customer-{number}" for number in random.integers(0, NUM_CUSTOMERS, num_rows)],
        [f"terminal-{number}" for number in random.integers(0, NUM_TERMINALS, num_rows)],
        at_s + random.integers(0, 60, num_rows),
        random.integers(1, 10**7, num_rows),
        random.uniform([-90, -180], [90, 180], (num_rows, 2)),
    )


def score(store: FeatureStore, batch: Events) -> int:
    """Reads and records a batch; gives when it was read."""
    fetched = store.fetch(batch)
    read_ns = time.perf_counter_ns()
    store.commit(batch, [DECISION] * len(batch.transaction_ids), fetched, NEVER_NS)
    return read_ns


def fill(store: FeatureStore, random: np.random.Generator) -> float:
    """Records the history; gives the seconds it took."""
    began_ns = time.perf_counter_ns()
    for begin in range(0, NUM_DECISIONS, 1_000):
        score(store, transactions(1_000, BEGIN_S + HISTORY_S * begin // NUM_DECISIONS, random))
    return (time.perf_counter_ns() - began_ns) / 1e9


@dataclass
class Samples:
    """Batches of one size: microseconds of each half, and of the processor for both."""

    fetch_us: list[float] = field(default_factory=list)
    commit_us: list[float] = field(default_factory=list)
    processor_us: list[float] = field(default_factory=list)

    def take(self, store: FeatureStore, batch: Events) -> None:
        """Adds one batch."""
        began_processor_ns, began_ns = time.process_time_ns(), time.perf_counter_ns()
        read_ns = score(store, batch)
        ended_ns, ended_processor_ns = time.perf_counter_ns(), time.process_time_ns()
        self.fetch_us.append((read_ns - began_ns) / 1e3)
        self.commit_us.append((ended_ns - read_ns) / 1e3)
        self.processor_us.append((ended_processor_ns - began_processor_ns) / 1e3)

    def figures(self, num_rows: int) -> dict[str, float]:
        """Percentiles per batch, and of both halves per transaction."""
        both_us = np.add(self.fetch_us, self.commit_us)
        figures = {"batches": float(len(both_us))}
        for name, values in {"fetch": self.fetch_us, "commit": self.commit_us}.items():
            for percentile in (5, 50, 99):
                figures[f"{name}_p{percentile}_us"] = float(np.percentile(values, percentile))
        for percentile in (5, 50, 99):
            figures[f"p{percentile}_us_per_transaction"] = float(np.percentile(both_us, percentile)) / num_rows
        for percentile in (5, 50):
            processor_us = float(np.percentile(self.processor_us, percentile))
            figures[f"processor_p{percentile}_us_per_transaction"] = processor_us / num_rows
        return {name: round(value, 2) for name, value in figures.items()}


def measure(store: FeatureStore, random: np.random.Generator) -> dict[str, dict[str, float]]:
    """All sizes in rounds, so that a noisy moment hits all alike."""
    samples = {size: Samples() for size in ROWS}
    at_s = BEGIN_S + HISTORY_S
    for _ in range(ROUNDS):
        for size, taken in samples.items():
            until_ns = time.monotonic_ns() + int(ROUND_S * 1e9)
            while time.monotonic_ns() < until_ns:
                taken.take(store, transactions(size, at_s, random))
    return {str(size): taken.figures(size) for size, taken in samples.items()}


def main() -> None:
    """Fills a store, measures, and writes the result."""
    warm_up()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder) / "features", max_bytes=4 << 30)
        fill_s = fill(store, random)
        gc.collect()
        gc.freeze()
        rows = measure(store, random)
        payload = {
            "question": "what does a batch cost in the embedded feature store?",
            "store": {
                "customers": NUM_CUSTOMERS,
                "terminals": NUM_TERMINALS,
                "decisions": NUM_DECISIONS,
                "bytes_used": store.bytes_used(),
                "fill_s": round(fill_s, 1),
            },
            "rows": rows,
        }
        store.close()
    for size, figures in rows.items():
        print(f"{size:>4} rows", "  ".join(f"{name} {value:g}" for name, value in figures.items()))
    print(f"written to {write_result('feature_store', payload)}")


if __name__ == "__main__":
    main()
