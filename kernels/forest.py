"""Trees as flat arrays: what the kernels of `kernels.trees` walk.

Enters: the trees of a model as Treelite names their fields (`RawTree`). Leaves: a `Forest`, every split rewritten into
one form, and its padded `CompleteForest`. Called once when a model is loaded.

The one form: `x[slot] < bound` goes to the first child, anything else, a missing value (NaN) included, to the second.
A slot is a column made from a feature once per row: the value itself; its negative, which turns a split whose missing
values go to the smaller side around; or 0 where there is a value, for a split that only asks whether there is one. So
a missing value costs the kernels nothing. The rewriting is exact, because rows are float32: `x <= t` is
`x < (the next float32 above the largest one not above t)`, also where `t` is a double.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
Real = npt.NDArray[np.float32] | npt.NDArray[np.float64]

PLAIN, MIRRORED, PRESENCE = 0, 1, 2
"""How a slot is made from its feature; `Forest.sources` holds `feature * 4 + kind`."""

CATEGORICAL_NODE = 2
"""Treelite's TreeNodeType of a categorical split."""

LESS, LESS_EQUAL, GREATER, GREATER_EQUAL = 2, 3, 4, 5
"""Treelite's Operator codes."""

MAX_COMPLETE_DEPTH = 8
"""Deeper trees are walked node by node: padding doubles with every level."""

MIN_COMPLETE_DEPTH = 3
"""The level-wise kernel takes the first three levels in one step."""

TREES_AT_ONCE = 4
"""The row kernel follows this many trees side by side; complete forests are padded to a multiple of it."""


class MalformedForest(ValueError):
    """The arrays do not describe trees; the message says which rule is broken."""


@dataclass(frozen=True, slots=True)
class RawTree:
    """One tree, fields as Treelite's field accessor names them; one entry per node, node 0 is the root."""

    node_type: npt.NDArray[np.int8]
    cleft: I32
    cright: I32
    split_index: I32
    threshold: Real
    cmp: npt.NDArray[np.int8]
    default_left: U8
    leaf: Real
    """[nodes, width]: the value, or the vector, a leaf adds; rows of inner nodes are not read."""
    category_list: U32
    category_list_begin: npt.NDArray[np.uint64]
    category_list_end: npt.NDArray[np.uint64]
    category_list_right_child: U8


@dataclass(frozen=True, slots=True)
class Forest:
    """All trees of a model in the one form; siblings are adjacent, so a node names only its first child.

    `leaf[node, :]` is added to the outputs from `columns[tree]` on. `child` is 0 in a leaf. `category` is 0 in a
    numerical split; otherwise ±s, where `bitsets[s]` counts the words of the set that follows, the first child is
    taken by members, and a missing value goes to the first child when the sign is negative.
    """

    num_features: int
    sources: U32
    roots: U32
    columns: U32
    slot: U32
    bound: F32
    child: U32
    category: I32
    bitsets: U32
    leaf: Real
    base: Real
    depth: int

    @property
    def has_complete_form(self) -> bool:
        """Whether the trees are shallow, numerical and scalar enough for `complete`."""
        return self.depth <= MAX_COMPLETE_DEPTH and self.leaf.shape[1] == 1 and not self.category.any()


@dataclass(frozen=True, slots=True)
class CompleteForest:
    """Every tree padded to `depth` levels: node i of a tree has children 2i and 2i + 1, the root is 1.

    `slot`, `bound`: [trees * 2**depth], the first of each tree unused; `leaf`: the same size, left to right. A leaf
    above the last level stands, repeated, under all its padded descendants, so what those compare does not matter.
    """

    num_features: int
    sources: U32
    columns: U32
    slot: U32
    bound: F32
    leaf: Real
    base: Real
    depth: int


def build_forest(trees: Sequence[RawTree], columns: U32, base: Real, num_features: int) -> Forest:
    """Rewrites `trees` into one form; `base` [outputs] is what every sum starts from.

    Raises MalformedForest when a node, feature or operator is out of range or a node has two ways to it.
    """
    parts = [_rewrite(tree, num_features, index) for index, tree in enumerate(trees)]
    nodes = np.cumsum([0] + [part.child.size for part in parts])
    words = np.cumsum([1] + [part.bitsets.size for part in parts])
    for part, first_node, first_word in zip(parts, nodes, words, strict=False):
        part.child[part.child > 0] += np.uint32(first_node)
        part.category[:] += np.sign(part.category) * np.int32(first_word - 1)
    is_inner = np.concatenate([part.child for part in parts]) > 0
    source = np.concatenate([part.source for part in parts])
    sources = np.unique(source[is_inner])
    slot = np.where(is_inner, np.searchsorted(sources, source), 0).astype(np.uint32)
    return Forest(
        num_features=num_features,
        sources=sources.astype(np.uint32),
        roots=nodes[:-1].astype(np.uint32),
        columns=columns.astype(np.uint32),
        slot=slot,
        bound=np.concatenate([part.bound for part in parts]),
        child=np.concatenate([part.child for part in parts]),
        category=np.concatenate([part.category for part in parts]),
        bitsets=np.concatenate([np.zeros(1, np.uint32), *(part.bitsets for part in parts)]),
        leaf=np.concatenate([part.leaf for part in parts]),
        base=base,
        depth=max(part.depth for part in parts),
    )


def complete(forest: Forest) -> CompleteForest:
    """Pads the trees of `forest`, which must have a complete form; adds empty trees up to `TREES_AT_ONCE`."""
    depth = max(forest.depth, MIN_COMPLETE_DEPTH)
    num_trees = forest.roots.size
    num_padded = -num_trees % TREES_AT_ONCE
    shape = (num_trees + num_padded, 1 << depth)
    slot, bound, leaf = np.zeros(shape, np.uint32), np.zeros(shape, np.float32), np.zeros(shape, forest.leaf.dtype)
    node = forest.roots[:, None]
    for level in range(depth):
        here = slice(1 << level, 2 << level)
        slot[:num_trees, here], bound[:num_trees, here] = forest.slot[node], forest.bound[node]
        child = forest.child[node]
        below = np.stack([np.where(child > 0, child, node), np.where(child > 0, child + np.uint32(1), node)], axis=2)
        node = below.reshape(num_trees, -1)
    leaf[:num_trees] = forest.leaf[node, 0]
    return CompleteForest(
        num_features=forest.num_features,
        sources=forest.sources,
        columns=np.concatenate([forest.columns, np.zeros(num_padded, np.uint32)]),
        slot=slot.ravel(),
        bound=bound.ravel(),
        leaf=leaf.ravel(),
        base=forest.base,
        depth=depth,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One rewritten tree; `child` and `category` count from its own first node and word."""

    source: npt.NDArray[np.int64]
    bound: F32
    child: U32
    category: I32
    bitsets: U32
    leaf: Real
    depth: int


@np.errstate(over="ignore", under="ignore")  # stepping past the largest or least float32 is meant
def _rewrite(tree: RawTree, num_features: int, index: int) -> _Part:
    _check(tree, num_features, index)
    strict, lower_is_left = _strict_bounds(tree)
    is_left_default = tree.default_left > 0
    is_categorical = tree.node_type == CATEGORICAL_NODE
    is_mirrored = (lower_is_left == is_left_default) & ~is_categorical
    kind = np.where(is_mirrored, MIRRORED, PLAIN)
    bound = np.where(is_mirrored, -np.nextafter(strict, np.float32(-np.inf)), strict).astype(np.float32)
    asks_presence = (is_mirrored & (strict == -np.inf)) | (~is_mirrored & ~is_categorical & np.isnan(strict))
    first_is_left = np.where(is_categorical, tree.category_list_right_child == 0, lower_is_left != is_mirrored)
    kind[asks_presence], bound[asks_presence] = PRESENCE, 1.0
    never = is_mirrored & np.isnan(strict)  # everything, missing values too, goes to the lower side, the second
    kind[never], bound[never] = PLAIN, -np.inf
    bitsets, category = _bitsets(tree, is_categorical, first_is_left == is_left_default)
    first = np.where(first_is_left, tree.cleft, tree.cright)
    second = np.where(first_is_left, tree.cright, tree.cleft)
    order, child, depth = _breadth_first(first, second, tree.cleft >= 0, index)
    source = np.where(tree.cleft >= 0, tree.split_index.astype(np.int64) * 4 + kind, 0)
    bound[tree.cleft < 0] = 0
    return _Part(source[order], bound[order], child, category[order], bitsets, tree.leaf[order], depth)


def _check(tree: RawTree, num_features: int, index: int) -> None:
    """Raises MalformedForest unless children, features, operators and category lists are in range."""
    num_nodes = tree.cleft.size
    inner = tree.cleft >= 0
    numerical = inner & (tree.node_type != CATEGORICAL_NODE)
    feature, operator = tree.split_index[inner], tree.cmp[numerical]
    begin, end = tree.category_list_begin, tree.category_list_end
    rules = {
        "has no nodes": num_nodes > 0,
        f"has children outside its {num_nodes} nodes": bool(
            np.all((tree.cleft[inner] < num_nodes) & (tree.cright[inner] >= 0) & (tree.cright[inner] < num_nodes))
        ),
        f"splits on features outside 0 to {num_features - 1}": bool(np.all((feature >= 0) & (feature < num_features))),
        "compares by something else than <, <=, > or >=": bool(
            np.all((operator >= LESS) & (operator <= GREATER_EQUAL))
        ),
        "has category lists out of range": bool(np.all((begin <= end) & (end <= tree.category_list.size))),
        "has a threshold that is not a number": not np.isnan(tree.threshold[numerical]).any(),
    }
    for broken, holds in rules.items():
        if not holds:
            raise MalformedForest(f"tree {index} {broken}")


def _strict_bounds(tree: RawTree) -> tuple[F32, npt.NDArray[np.bool_]]:
    """(s, lower_is_left): the lower side is exactly the float32 x with `x < s`; NaN for s means every x."""
    threshold = tree.threshold.astype(np.float64)
    nearest = threshold.astype(np.float32)
    floor = np.where(nearest > threshold, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    above = np.nextafter(floor, np.float32(np.inf))
    takes_equal = (tree.cmp == LESS_EQUAL) | (tree.cmp == GREATER)
    strict = np.where(takes_equal | (floor < threshold), above, floor).astype(np.float32)
    strict[takes_equal & (floor == np.inf)] = np.nan
    return strict, (tree.cmp == LESS) | (tree.cmp == LESS_EQUAL)


def _bitsets(
    tree: RawTree, is_categorical: npt.NDArray[np.bool_], missing_goes_first: npt.NDArray[np.bool_]
) -> tuple[U32, I32]:
    """The sets of categories as words, each preceded by their number, and every node's ±(place, counted from 1)."""
    category = np.zeros(tree.cleft.size, np.int32)
    words: list[U32] = []
    place = 1
    for node in np.flatnonzero(is_categorical):
        members = tree.category_list[int(tree.category_list_begin[node]) : int(tree.category_list_end[node])]
        if members.size and members.max() > 1 << 24:
            raise MalformedForest(f"category {members.max()}; float32 rows can carry 0 to {1 << 24}")
        bits = np.zeros(1 + (int(members.max()) // 32 + 1 if members.size else 0), np.uint32)
        bits[0] = bits.size - 1
        np.bitwise_or.at(bits, 1 + members // 32, np.uint32(1) << (members % 32))
        category[node] = -place if missing_goes_first[node] else place
        words.append(bits)
        place += bits.size
    return (np.concatenate(words) if words else np.zeros(0, np.uint32)), category


def _breadth_first(
    first: I32, second: I32, is_inner: npt.NDArray[np.bool_], index: int
) -> tuple[npt.NDArray[np.int64], U32, int]:
    """(order, child, depth): nodes by level with siblings adjacent, each one's first child in that order."""
    levels = [np.zeros(1, np.int64)]
    num_reached = 1
    while (parents := levels[-1][is_inner[levels[-1]]]).size and num_reached <= first.size:
        levels.append(np.stack([first[parents], second[parents]], axis=1).ravel().astype(np.int64))
        num_reached += levels[-1].size
    order = np.concatenate(levels)
    if np.unique(order).size < order.size:
        raise MalformedForest(f"tree {index} has a node with two ways to it")
    inner = is_inner[order]
    child = np.zeros(order.size, np.uint32)
    child[inner] = 1 + 2 * np.arange(np.count_nonzero(inner))
    return order, child, len(levels) - 1
