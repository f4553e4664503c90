"""The plain twin of `kernels.shap`: Shapley values by their definition, over every subset of the features.

Enters: trees as `RawTree` with covers, untouched by any rewriting, and rows. Leaves: contributions in float64. Called
by the tests only, with few features: the time doubles with each. What a tree answers when only some features are known
is Algorithm 1 of Lundberg, Erion, Lee 2018, "Consistent Individualized Feature Attribution for Tree Ensembles".
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import combinations
from math import factorial

import numpy as np
import numpy.typing as npt

from kernels.forest import F32, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL, RawTree

F64 = npt.NDArray[np.float64]

_COMPARE = {LESS: operator.lt, LESS_EQUAL: operator.le, GREATER: operator.gt, GREATER_EQUAL: operator.ge}


def contributions(trees: Sequence[RawTree], covers: Sequence[F64], base: float, rows: F32) -> F64:
    """[n, features + 1]: Shapley values of the sum of `trees` and `base`, then the answer when nothing is known."""
    out = np.zeros((len(rows), rows.shape[1] + 1))
    for row, values in zip(rows, out, strict=True):
        values[-1] = base
        for tree, cover in zip(trees, covers, strict=True):
            used = sorted(set(tree.split_index[tree.cleft >= 0].tolist()))
            answer = {known: expected(tree, cover, row, known) for known in _subsets(used)}
            values[-1] += answer[frozenset()]
            for feature in used:
                values[feature] += _shapley_value(answer, used, feature)
    return out


def expected(tree: RawTree, cover: F64, row: F32, known: frozenset[int], node: int = 0) -> float:
    """What `tree` answers `row` when the other features are unknown: their splits are averaged by cover."""
    left, right = int(tree.cleft[node]), int(tree.cright[node])
    if left < 0:
        return float(tree.leaf[node, 0])
    if tree.split_index[node] in known:
        return expected(tree, cover, row, known, left if _goes_left(tree, node, row) else right)
    parts = [cover[child] / cover[node] * expected(tree, cover, row, known, child) for child in (left, right)]
    return float(sum(parts))


def _shapley_value(answer: dict[frozenset[int], float], used: list[int], feature: int) -> float:
    """What `feature` adds to the subsets without it, averaged over the orders in which features become known."""
    others = [other for other in used if other != feature]
    value = 0.0
    for known in _subsets(others):
        orders = factorial(len(known)) * factorial(len(others) - len(known))
        value += orders / factorial(len(used)) * (answer[known | {feature}] - answer[known])
    return value


def _subsets(features: list[int]) -> list[frozenset[int]]:
    return [frozenset(chosen) for size in range(len(features) + 1) for chosen in combinations(features, size)]


def _goes_left(tree: RawTree, node: int, row: F32) -> bool:
    value = float(row[tree.split_index[node]])
    if np.isnan(value):
        return bool(tree.default_left[node])
    return bool(_COMPARE[int(tree.cmp[node])](value, float(tree.threshold[node])))
