"""What does a row cost? XGBoost, 300 trees of depth 6, 30 float32 features, one thread; 1 to 4 096 rows a call.

Target: at most 6 µs for 1 row and 600 µs for 256, on preallocated buffers. Every call gets other rows than the one
before: compiled trees asked for the same row again and again have learnt its branches, and look three times faster.

    python -m benchmarks.trees
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tl2cgen
import treelite
import xgboost
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.record import write_result
from serve.backends.base import ModelSpec
from serve.backends.tree_forms import compiled_form, make_scratch, numba_forms
from serve.backends.tree_import import read_forest
from serve.backends.tree_library import LIBRARY, open_library
from serve.backends.trees import TreeModel, load_trees
from serve.repository.cache import ArtefactCache

NUM_TREES, DEPTH, NUM_FEATURES = 300, 6, 30
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
POOL_ROWS = 20_000
BUDGET_S = 0.4
ROUNDS = 3

Score = Callable[[np.ndarray], Any]


def train(folder: Path) -> xgboost.Booster:
    """The model, on noise with some structure, as `folder`/xgboost.ubj."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(POOL_ROWS, NUM_FEATURES)).astype(np.float32)
    score = rows[:, 0] * rows[:, 1] + np.sin(rows[:, 2] * 3) + 0.2 * rows[:, 3:].sum(axis=1)
    labels = score + random.normal(size=len(rows)) > 0
    parameters = {"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.1, "seed": 0}
    booster = xgboost.train(parameters, xgboost.DMatrix(rows, labels), NUM_TREES)
    booster.set_param({"nthread": 1})
    booster.save_model(folder / "xgboost.ubj")
    return booster


def load(folder: Path) -> tuple[TreeModel, float]:
    """The served model and the seconds of its first load, compilation included."""
    cache = ArtefactCache(folder / "cache", 1 << 30)
    spec = ModelSpec("bench", "1", "fil", "fil", 4096, (), (), {"model_type": "xgboost_ubj"})
    began_ns = time.monotonic_ns()
    model = load_trees(folder, ModelConfig(), spec, print, cache=cache)
    return model, (time.monotonic_ns() - began_ns) / 1e9


def contestants(folder: Path, model: TreeModel, booster: xgboost.Booster) -> dict[str, Score]:
    """Everything that is compared, each as a function of rows."""
    (forest_file,) = folder.glob("cache/bench-import-*/forest.npz")
    (library_file,) = folder.glob(f"cache/bench-library-*/{LIBRARY}")
    imported, library = read_forest(forest_file.parent), open_library(library_file.parent)
    scratch = make_scratch(imported.forest)
    forms = {**numba_forms(imported, scratch), "compiled": compiled_form(imported, library, scratch)}
    out = np.empty((max(ROWS), 1), np.float32)
    scores = np.empty(max(ROWS), np.float32)
    predictor = tl2cgen.Predictor(library_file, nthread=1)

    def running(name: str) -> Score:
        return lambda rows: forms[name](rows, out[: len(rows)])

    return {
        **{f"ours, {name}": running(name) for name in forms},
        "ours, score_into (picks)": lambda rows: model.score_into(rows, scores[: len(rows)]),
        "ours, infer (picks)": lambda rows: model.infer({"input__0": rows}),
        "tl2cgen Predictor": lambda rows: predictor.predict(tl2cgen.DMatrix(rows)),
        "treelite GTIL": gtil(folder),
        "xgboost inplace_predict": booster.inplace_predict,
        "xgboost DMatrix + predict": lambda rows: booster.predict(xgboost.DMatrix(rows, nthread=1)),
    }


def gtil(folder: Path) -> Score:
    """Treelite's own interpreter."""
    model = treelite.frontend.load_xgboost_model(folder / "xgboost.ubj", format_choice="ubjson")
    return lambda rows: treelite.gtil.predict(model, rows, nthread=1)


def batches(pool: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Endless batches of `size` different rows."""
    while True:
        for start in range(0, len(pool) - size + 1, size):
            yield pool[start : start + size]


@dataclass
class Samples:
    """Calls of one contestant at one size: how long each took, and what the thread spent on all of them."""

    wall_us: list[float] = field(default_factory=list)
    processor_ns: int = 0

    def take(self, score: Score, pool: np.ndarray, size: int, budget_s: float) -> None:
        """Adds as many calls as `budget_s` allows, at least 10."""
        source = batches(pool, size)
        for _ in range(3):
            score(next(source))
        num_before = len(self.wall_us)
        deadline_ns = time.monotonic_ns() + int(budget_s * 1e9)
        began_processor_ns = time.thread_time_ns()
        while len(self.wall_us) < num_before + 10 or time.monotonic_ns() < deadline_ns:
            rows = next(source)
            began_ns = time.perf_counter_ns()
            score(rows)
            self.wall_us.append((time.perf_counter_ns() - began_ns) / 1e3)
        self.processor_ns += time.thread_time_ns() - began_processor_ns

    def figures(self) -> dict[str, float]:
        """Percentiles of the calls, and processor time per call (the loop's own third of a microsecond included)."""
        least, median, p99 = np.percentile(self.wall_us, [5, 50, 99]).round(2).tolist()
        processor_us = round(self.processor_ns / len(self.wall_us) / 1e3, 2)
        return {"p5_us": least, "p50_us": median, "p99_us": p99, "processor_us": processor_us}


def measure(scores: dict[str, Score], pool: np.ndarray, size: int) -> dict[str, dict[str, float]]:
    """Everything at one size, in rounds, so that a noisy moment hits all alike."""
    samples = {contestant: Samples() for contestant in scores}
    for _ in range(ROUNDS):
        for contestant, score in scores.items():
            samples[contestant].take(score, pool, size, BUDGET_S / ROUNDS)
    figures = {contestant: found.figures() for contestant, found in samples.items()}
    for contestant, figure in figures.items():
        print(f"{size:5} rows  {contestant:28}", "  ".join(f"{name} {value:10.1f}" for name, value in figure.items()))
    return figures


def main() -> None:
    """Trains, loads, measures, and writes the result."""
    pool = np.random.default_rng(1).normal(size=(POOL_ROWS, NUM_FEATURES)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        booster = train(folder)
        model, first_load_s = load(folder)
        scores = contestants(folder, model, booster)
        payload = {
            "question": "what does a row cost?",
            "model": {"trees": NUM_TREES, "depth": DEPTH, "features": NUM_FEATURES},
            "first_load_s": round(first_load_s, 1),
            "engine": model.engine,
            "crossovers": model.plan.crossovers(),
            "rows": {str(size): measure(scores, pool, size) for size in ROWS},
        }
    print(f"written to {write_result('trees', payload)}")


if __name__ == "__main__":
    main()
