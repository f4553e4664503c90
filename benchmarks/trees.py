"""What does a row cost? XGBoost, 300 trees of depth 6, 30 float32 features, one thread; 1 to 4 096 rows a call.

Target: at most 6 µs for 1 row and 600 µs for 256, on preallocated buffers. Every call gets other rows than the one
before: compiled trees asked for the same row again and again have learnt its branches, and look three times faster.

    python -m benchmarks.trees
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
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


def sample_us(score: Score, pool: np.ndarray, size: int, budget_s: float) -> list[float]:
    """Microseconds of single calls, as many as `budget_s` allows, at least 10."""
    source = batches(pool, size)
    for _ in range(3):
        score(next(source))
    samples: list[float] = []
    deadline_ns = time.monotonic_ns() + int(budget_s * 1e9)
    while len(samples) < 10 or time.monotonic_ns() < deadline_ns:
        rows = next(source)
        began_ns = time.perf_counter_ns()
        score(rows)
        samples.append((time.perf_counter_ns() - began_ns) / 1e3)
    return samples


def main() -> None:
    """Measures everything in rounds, so that a noisy moment hits all alike, and writes the result."""
    pool = np.random.default_rng(1).normal(size=(POOL_ROWS, NUM_FEATURES)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        booster = train(folder)
        model, first_load_s = load(folder)
        scores = contestants(folder, model, booster)
        figures: dict[str, dict[str, dict[str, float]]] = {contestant: {} for contestant in scores}
        for size in ROWS:
            samples: dict[str, list[float]] = {contestant: [] for contestant in scores}
            for _ in range(ROUNDS):
                for contestant, score in scores.items():
                    samples[contestant] += sample_us(score, pool, size, BUDGET_S / ROUNDS)
            for contestant, found in samples.items():
                least, median, p99 = np.percentile(found, [5, 50, 99]).round(2).tolist()
                figures[contestant][str(size)] = {"p5_us": least, "p50_us": median, "p99_us": p99}
                print(f"{size:5} rows  {contestant:28} p5 {least:10.1f}  p50 {median:10.1f}  p99 {p99:10.1f} µs")
        payload = {
            "question": "what does a row cost?",
            "model": {"trees": NUM_TREES, "depth": DEPTH, "features": NUM_FEATURES},
            "first_load_s": round(first_load_s, 1),
            "engine": model.engine,
            "crossovers": model.plan.crossovers(),
            "rows": figures,
        }
        print(f"written to {write_result('trees', payload)}")


if __name__ == "__main__":
    main()
