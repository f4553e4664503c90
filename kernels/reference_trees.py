"""The plain twin of `kernels.trees` and `kernels.compiled`: trees as Treelite describes them, a node at a time.

Enters: trees as `RawTree`, untouched by the rewriting of `kernels.forest`. Leaves: sums and answers in float64. Called
by the tests only. Semantics: Treelite's GTIL (gtil/predict.cc), which are those of XGBoost, LightGBM and scikit-learn.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kernels.forest import CATEGORICAL_NODE, F32, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL, U32, RawTree, Real

F64 = npt.NDArray[np.float64]

_COMPARE = {LESS: operator.lt, LESS_EQUAL: operator.le, GREATER: operator.gt, GREATER_EQUAL: operator.ge}


def sums(trees: Sequence[RawTree], columns: U32, base: Real, rows: F32) -> F64:
    """[n, outputs]: `base` plus, from `columns[tree]` on, the values of the leaf every tree leads a row to."""
    total = np.tile(base.astype(np.float64), (len(rows), 1))
    for tree, column in zip(trees, columns, strict=True):
        width = tree.leaf.shape[1]
        for index, row in enumerate(rows):
            total[index, column : column + width] += tree.leaf[leaf_of(tree, row)]
    return total


def leaf_of(tree: RawTree, row: F32) -> int:
    """The leaf that `row` reaches from the root, by the node's own comparison and default."""
    node = 0
    while tree.cleft[node] >= 0:
        value = row[tree.split_index[node]]
        if np.isnan(value):
            goes_left = bool(tree.default_left[node])
        elif tree.node_type[node] == CATEGORICAL_NODE:
            goes_left = _is_member(tree, node, float(value)) != bool(tree.category_list_right_child[node])
        else:
            goes_left = _COMPARE[int(tree.cmp[node])](float(value), float(tree.threshold[node]))
        node = int(tree.cleft[node] if goes_left else tree.cright[node])
    return node


def answers(total: F64, postprocessor: str, alpha: float) -> F64:
    """The sums [n, outputs] as the model's predictions, by Treelite's name for how."""
    if postprocessor == "softmax":
        powers = np.exp(total - total.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    with np.errstate(over="ignore"):
        if postprocessor == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-alpha * total)))
        if postprocessor == "exponential":
            return np.exp(total)
        if postprocessor == "exponential_standard_ratio":
            return np.exp2(-total / alpha)
    return total


def _is_member(tree: RawTree, node: int, value: float) -> bool:
    """Whether the category `value`, truncated, is in the node's list; negative ones never are."""
    members = tree.category_list[int(tree.category_list_begin[node]) : int(tree.category_list_end[node])]
    return value >= 0 and np.isfinite(value) and int(value) in members
