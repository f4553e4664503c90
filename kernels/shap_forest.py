"""Trees as the tables from which `kernels.shap` reads contributions: everything that does not depend on the row.

Enters: trees as Treelite names their fields, and each node's cover, the weight of the training rows that reached it.
Leaves: a `ShapForest`, which can be saved and loaded. Called once when a model is imported.

The method. Let E(S) be what a tree answers when the features in S are known and every other split is averaged by cover
(path-dependent TreeSHAP; Lundberg, Erion, Lee 2018, "Consistent Individualized Feature Attribution for Tree
Ensembles"). On the way to a leaf, the splits on one feature merge into one factor: z, the product of their cover
fractions, while the feature is unknown; o, 1 if the row passes them all and 0 otherwise, when it is known. The Shapley
weight of a set of s among m features, s! (m-1-s)! / m!, is the integral of t**s (1-t)**(m-1-s) over 0 < t < 1, so

    contribution of i = integral over t of  sum over leaves of  value (o_i - z_i)  product over j != i of f_j,
    where f_j = t o_j + (1-t) z_j,

whose integrand is a polynomial of degree m-1: Gauss and Legendre's rule is exact for it from m/2 points on, 4 for trees
of depth 8. At one t the products over all leaves below a split are shared, as they are in Linear TreeSHAP (Yu et al.
2022), so a tree costs one pass down, multiplying, and one up, adding, instead of (path length)**2 for every leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from kernels.forest import F32, U32, Forest, MalformedForest, RawTree, build_forest

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

POINTS = 4
"""Points that are computed together, one in each lane of a 128-bit register; a rule has a multiple of them."""

TERMS = 4 * POINTS
"""What is read of a split, 64 bytes: for each child as many steps and as many gains."""

CLOSED, FIRST, SECOND = 0, 1, 2
"""What a row makes of a split: it has failed a split above on the same feature, or it goes to one of the children."""

SPLIT = np.dtype(
    [("bound", np.float32), ("slot", np.uint32), ("node", np.uint32), ("child", np.uint32), ("above", np.uint32)]
)
"""A split as `kernels.forest` writes it. `node`, its first `child` and `above` count from the tree's root; `above` is
the child through which the way here left the last split on the same feature, or the root."""


class Unexplainable(ValueError):
    """The trees are sound, but contributions are not offered for them; the message says why."""


@dataclass(frozen=True, slots=True)
class ShapForest:
    """A forest of one output, ready for `kernels.shap.contributions`. Immutable: threads may share it.

    Tree k has the splits `starts[k]` to `starts[k + 1]`, parents first. `terms` is [points / POINTS, splits, (CLOSED,
    FIRST, SECOND), (step, gain), (first child, second child), POINTS], flat: a step is what the child multiplies into
    the product of its way, a leaf's value included; a gain is what the sum of the products below it earns the feature.
    `base` is the answer when nothing is known; `max_nodes` is the size of the largest tree.
    """

    num_features: int
    max_nodes: int
    base: float
    sources: U32
    starts: U32
    splits: npt.NDArray[np.void]
    terms: F32


def build_shap_forest(trees: Sequence[RawTree], covers: Sequence[F64], base: float, num_features: int) -> ShapForest:
    """The tables of `trees`, whose sum with `base` is explained; `covers[k][node]` >= 0, as in XGBoost's sum_hessian.

    Raises Unexplainable for categorical splits or leaves that hold vectors, MalformedForest when the arrays are not
    trees or a cover is missing, negative, not finite, or 0 at a split.
    """
    _check(trees, covers)
    forest = build_forest(
        [_with_cover(tree, cover) for tree, cover in zip(trees, covers, strict=True)],
        np.zeros(len(trees), np.uint32),
        np.zeros(2),
        num_features,
    )
    leaf, cover = forest.leaf[:, 0].astype(np.float64), forest.leaf[:, 1].astype(np.float64)
    ways = _ways(forest, cover)
    ends = np.append(forest.roots, forest.child.size).astype(np.int64)
    is_leaf = forest.child == 0
    return ShapForest(
        num_features=num_features,
        max_nodes=int(np.diff(ends).max()),
        base=base + float(ways.reach[is_leaf] @ leaf[is_leaf]),
        sources=forest.sources,
        starts=np.searchsorted(ways.split, ends).astype(np.uint32),
        splits=_splits(forest, ways),
        terms=_terms(forest, ways, leaf, cover),
    )


def save(forest: ShapForest, path: Path) -> None:
    """Writes `forest` as a NumPy archive without pickles."""
    np.savez(
        path, allow_pickle=False, **{field.name: getattr(forest, field.name) for field in dataclasses.fields(forest)}
    )


def load(path: Path) -> ShapForest:
    """What `save` wrote; raises MalformedForest when the file is something else or damaged, OSError when not there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return ShapForest(**{name: array if array.ndim else array.item() for name, array in arrays.items()})
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise MalformedForest(f"{path} does not hold a ShapForest: {error}") from None


@dataclass(frozen=True, slots=True)
class _Ways:
    """How nodes are reached. Per split: its node, root, the node `above`. Per node: what the way to it multiplies to.

    `merged` is z of the feature of the split just left, `reach` the product of all cover fractions, `num_features`
    counts the different features on the way.
    """

    split: I64
    root: I64
    above: I64
    merged: F64
    reach: F64
    num_features: I64


def _check(trees: Sequence[RawTree], covers: Sequence[F64]) -> None:
    for index, (tree, cover) in enumerate(zip(trees, covers, strict=True)):
        if tree.leaf.shape[1] != 1:
            raise Unexplainable(f"tree {index} has leaves of {tree.leaf.shape[1]} values; allowed 1")
        if cover.shape != tree.cleft.shape:
            raise MalformedForest(
                f"tree {index} has {cover.size} covers; allowed one for each of {tree.cleft.size} nodes"
            )
        if not (np.isfinite(cover) & (cover >= 0) & ((cover > 0) | (tree.cleft < 0))).all():
            raise MalformedForest(f"tree {index} has covers that are not finite and above 0 (leaves: 0 or above)")


def _with_cover(tree: RawTree, cover: F64) -> RawTree:
    """The tree with (value, cover) in every node, so that covers follow when nodes are put into another order."""
    return dataclasses.replace(tree, leaf=np.stack([tree.leaf[:, 0].astype(np.float64), cover], axis=1))


def _ways(forest: Forest, cover: F64) -> _Ways:
    if forest.category.any():
        raise Unexplainable("contributions of categorical splits; allowed numerical splits")
    num_nodes = forest.child.size
    split = np.flatnonzero(forest.child)
    child = forest.child[split].astype(np.int64)
    parent = np.arange(num_nodes)
    parent[child], parent[child + 1] = split, split
    roots = forest.roots.astype(np.int64)
    root = np.repeat(roots, np.diff(np.append(roots, num_nodes)))[split]
    level, above = _climb(forest, split, root, parent)
    merged, reach, num_features = np.ones(num_nodes), np.ones(num_nodes), np.zeros(num_nodes, np.int64)
    for depth in range(forest.depth):
        here = level == depth
        node, first = split[here], child[here]
        for branch in (first, first + 1):
            fraction = cover[branch] / cover[node]
            merged[branch] = merged[above[here]] * fraction
            reach[branch] = reach[node] * fraction
            num_features[branch] = num_features[node] + (above[here] == root[here])
    return _Ways(split, root, above, merged, reach, num_features)


def _climb(forest: Forest, split: I64, root: I64, parent: I64) -> tuple[I64, I64]:
    """(level, above) of every split, found by going up from all of them at once."""
    feature = np.full(forest.child.size, -1, np.int64)
    feature[split] = forest.sources[forest.slot[split]] >> 2
    level, above, node = np.zeros(split.size, np.int64), root.copy(), split
    for _ in range(forest.depth):
        is_found = (above == root) & (feature[parent[node]] == feature[split])
        above[is_found] = node[is_found]
        level += node != root
        node = parent[node]
    return level, above


def _splits(forest: Forest, ways: _Ways) -> npt.NDArray[np.void]:
    splits = np.zeros(ways.split.size, SPLIT)
    splits["bound"], splits["slot"] = forest.bound[ways.split], forest.slot[ways.split]
    splits["node"], splits["above"] = ways.split - ways.root, ways.above - ways.root
    splits["child"] = forest.child[ways.split] - ways.root
    return splits


def _terms(forest: Forest, ways: _Ways, leaf: F64, cover: F64) -> F32:
    """Steps: the feature's factor f after a split over that before it; gains: the change of (o - z) / f.

    Along the splits on one feature the changes add up to (o - z) / f of the merged factor.
    """
    num_blocks = max(1, -(-int(ways.num_features.max()) // (2 * POINTS)))
    nodes, weights = np.polynomial.legendre.leggauss(num_blocks * POINTS)
    t, weight = (nodes + 1) / 2, weights / 2
    before = ways.merged[ways.above][:, None]
    factor_before = t + (1 - t) * before
    earned_before = (1 - before) / factor_before
    terms = np.zeros((ways.split.size, 3, 2, 2, t.size))
    steps, gains = terms[:, :, 0], terms[:, :, 1]
    for side, passes, fails in ((0, FIRST, SECOND), (1, SECOND, FIRST)):
        child = forest.child[ways.split].astype(np.int64) + side
        z = ways.merged[child][:, None]
        factor = t + (1 - t) * z
        value = np.where(forest.child[child] > 0, 1.0, leaf[child])[:, None]
        steps[:, CLOSED, side] = (cover[child] / cover[ways.split])[:, None] * value
        steps[:, passes, side] = factor / factor_before * value
        steps[:, fails, side] = (1 - t) * z / factor_before * value
        gains[:, passes, side] = weight * ((1 - z) / factor - earned_before)
        gains[:, fails, side] = weight * (-1 / (1 - t) - earned_before)
    blocks = terms.reshape(*terms.shape[:4], num_blocks, POINTS).transpose(4, 0, 1, 2, 3, 5)
    return np.ascontiguousarray(blocks, np.float32).ravel()
