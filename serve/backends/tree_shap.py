"""Why a row scored as it did: the tables `kernels.shap` reads, written when a model is imported, and what reads them.

Called by `serve.backends.tree_import` (write, in its child process) and `serve.backends.trees` (read, explain).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernels.forest import F32, MalformedForest, RawTree
from kernels.shap import Scratch, contributions
from kernels.shap_forest import ShapForest, Unexplainable, build_shap_forest, load, save

TABLES = "shap.npz"
EXPLAINED_TYPES = {"xgboost_json": "sum_hess", "xgboost_ubj": "sum_hess", "lightgbm": "data_count"}
"""By model type, the field that says what reached a node: the weight its own library averages by. The kernel is tested
against each of these libraries.
"""


class Explainer:
    """SHAP values of one model. Thread-safe: scratch belongs to the thread."""

    def __init__(self, forest: ShapForest) -> None:
        self._forest = forest
        self._scratch = Scratch(forest)

    def contributions(self, rows: F32) -> F32:
        """Of `rows` [n, features], C-contiguous: [n, features + 1], the base last; a row's sum is its margin."""
        out = np.empty((len(rows), self._forest.num_features + 1), np.float32)
        contributions(self._forest, self._scratch, rows, out)
        return out


def write_tables(model: Any, model_type: str, trees: Sequence[RawTree], folder: Path) -> None:
    """Writes the tables of a `treelite.Model` of one output; nothing when it cannot be explained."""
    field = model.get_header_accessor().get_field
    if int(field("num_class")[0]) != 1 or field("average_tree_output")[0]:
        return
    cover = EXPLAINED_TYPES[model_type]
    covers = [model.get_tree_accessor(index).get_field(cover).astype(np.float64) for index in range(model.num_tree)]
    try:
        forest = build_shap_forest(trees, covers, float(field("base_scores")[0]), model.num_feature)
    except (Unexplainable, MalformedForest):
        return
    save(forest, folder / TABLES)


def read_explainer(folder: Path) -> Explainer | None:
    """What explains the model imported into `folder`, if it can be explained."""
    path = folder / TABLES
    return Explainer(load(path)) if path.exists() else None
