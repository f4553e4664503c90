"""What does an exact explanation of a row cost? The fraud model and a full one; 1, 8 and 64 rows a call, one thread.

Target: at most 200 µs a row for 300 full trees of depth 6 on 30 features; XGBoost's values within 1e-4 of the margin
(of 1 where that is less). Every call gets other rows than the one before.

    python -m benchmarks.shap
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from benchmarks.record import write_result
from kernels.shap import Scratch, contributions
from kernels.shap_forest import ShapForest, build_shap_forest
from serve.backends.tree_import import load_treelite, raw_tree

NUM_TREES, DEPTH, NUM_FEATURES = 300, 6, 30
FRAUD = Path(__file__).parent.parent / "model_repository/fraud_ensemble/1/xgboost.ubj"
ROWS = (1, 8, 64)
POOL_ROWS = 1_024
BUDGET_S = 0.4
ROUNDS = 3

Explain = Callable[[np.ndarray], Any]


def train_full(file: Path) -> None:
    """A model whose trees have nearly all their 64 leaves: nothing limits them and there is only noise to learn."""
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(20_000, NUM_FEATURES)), random.normal(size=20_000)
    parameters = {"max_depth": DEPTH, "eta": 0.02, "min_child_weight": 0, "seed": 0}
    xgboost.train(parameters, xgboost.DMatrix(rows, labels), NUM_TREES).save_model(file)


def built(file: Path) -> tuple[ShapForest, dict[str, Any]]:
    """The tables of a model file, and what they are."""
    model = load_treelite(file, "xgboost_ubj")
    header = model.get_header_accessor()
    accessors = [model.get_tree_accessor(index) for index in range(model.num_tree)]
    trees, covers = [raw_tree(each, header) for each in accessors], [each.get_field("sum_hess") for each in accessors]
    began_ns = time.monotonic_ns()
    forest = build_shap_forest(trees, covers, float(header.get_field("base_scores")[0]), model.num_feature)
    return forest, {
        "trees": len(trees),
        "features": forest.num_features,
        "leaves": forest.splits.size + len(trees),
        "build_ms": round((time.monotonic_ns() - began_ns) / 1e6),
        "tables_kib": (forest.terms.nbytes + forest.splits.nbytes) // 1024,
    }


def pool_of(booster: xgboost.Booster) -> np.ndarray:
    """Rows made of the model's own thresholds, so that they spread over its leaves; one value in twenty is missing."""
    random = np.random.default_rng(1)
    splits = booster.trees_to_dataframe().query("Feature != 'Leaf'")
    rows = np.zeros((POOL_ROWS, booster.num_features()), np.float32)
    for feature, thresholds in splits.groupby("Feature")["Split"]:
        rows[:, int(feature[1:])] = random.choice(thresholds.to_numpy(), POOL_ROWS)
    rows[random.random(rows.shape) < 0.05] = np.nan
    return rows


def sample_us(explain: Explain, pool: np.ndarray, size: int, budget_s: float) -> list[float]:
    """Microseconds a row of single calls, as many as `budget_s` allows, at least 10."""
    samples: list[float] = []
    deadline_ns = time.monotonic_ns() + int(budget_s * 1e9)
    while len(samples) < 10 or time.monotonic_ns() < deadline_ns:
        start = len(samples) * size % POOL_ROWS
        rows = pool[start : start + size]
        began_ns = time.perf_counter_ns()
        explain(rows)
        samples.append((time.perf_counter_ns() - began_ns) / 1e3 / size)
    return samples


def figures_of(file: Path) -> dict[str, Any]:
    """One model: kernel and XGBoost in turns, so that a noisy moment hits both alike."""
    forest, model = built(file)
    booster = xgboost.Booster(model_file=file)
    booster.set_param({"nthread": 1})
    pool, scratch = pool_of(booster), Scratch(forest)
    out = np.empty((POOL_ROWS, forest.num_features + 1), np.float32)
    explains: dict[str, Explain] = {
        "ours": lambda rows: contributions(forest, scratch, rows, out[: len(rows)]),
        "xgboost pred_contribs": lambda rows: booster.predict(xgboost.DMatrix(rows, nthread=1), pred_contribs=True),
    }
    explains["ours"](pool)
    expected = explains["xgboost pred_contribs"](pool)
    error = np.abs(out - expected) / np.maximum(1, np.abs(expected.sum(axis=1, keepdims=True)))
    row_us: dict[str, dict[str, dict[str, float]]] = {name: {} for name in explains}
    for size in ROWS:
        samples: dict[str, list[float]] = {name: [] for name in explains}
        for _ in range(ROUNDS):
            for name, explain in explains.items():
                samples[name] += sample_us(explain, pool, size, BUDGET_S / ROUNDS)
        for name, found in samples.items():
            least, median, p99 = np.percentile(found, [5, 50, 99]).round(1).tolist()
            row_us[name][str(size)] = {"p5_us": least, "p50_us": median, "p99_us": p99}
            print(f"{size:3} rows  {name:22} p5 {least:8.1f}  p50 {median:8.1f}  p99 {p99:8.1f} µs a row")
    return {**model, "largest_error": float(error.max()), "row": row_us}


def main() -> None:
    """Measures both models and writes the result."""
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "xgboost.ubj"
        train_full(full)
        models = {}
        for name, file in {"fraud": FRAUD, "full": full}.items():
            print(name)
            models[name] = figures_of(file)
    payload = {"question": "what does an exact explanation of a row cost?", "models": models}
    print(f"written to {write_result('shap', payload)}")


if __name__ == "__main__":
    main()
