"""The tree kernels against their plain twin, on random trees of every kind and rows chosen to be awkward."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_trees
from kernels.forest import (
    GREATER_EQUAL,
    LESS,
    MAX_COMPLETE_DEPTH,
    Forest,
    MalformedForest,
    RawTree,
    build_forest,
    complete,
)
from kernels.trees import (
    BLOCK,
    EXPONENTIAL,
    IDENTITY,
    SIGMOID,
    SOFTMAX,
    STANDARD_RATIO,
    Scratch,
    score_blocks,
    score_rows,
    walk_blocks,
)

NUM_FEATURES = 5
TINY, HUGE, SUBNORMAL = np.finfo(np.float32).tiny, np.finfo(np.float32).max, np.float32(1e-45)
AWKWARD = [0.0, -0.0, 1.0, -1.0, 1 / 3, SUBNORMAL, -SUBNORMAL, TINY, HUGE, -HUGE, np.inf, -np.inf]


def random_tree(
    random: np.random.Generator,
    depth: int,
    *,
    dtype: type = np.float32,
    width: int = 1,
    has_categories: bool = False,
) -> RawTree:
    """A tree of at most `depth` levels with nodes in shuffled order; thresholds are awkward on purpose."""
    left, right = [-1], [-1]
    levels = [0]
    frontier = [0]
    for level in range(1, depth + 1):
        grown = [node for node in frontier if node == frontier[0] or random.random() < 0.6]
        frontier = []
        for node in grown:
            left[node], right[node] = len(left), len(left) + 1
            left += [-1, -1]
            right += [-1, -1]
            levels += [level, level]
            frontier += [left[node], right[node]]
    size = len(left)
    inner = np.array(left) >= 0
    is_categorical = inner & (random.random(size) < (0.5 if has_categories else 0.0))
    thresholds = random.choice(np.array([*AWKWARD, 1e300, -1e300, 0.1], np.float64), size)
    thresholds = np.where(random.random(size) < 0.5, thresholds, random.normal(size=size))
    with np.errstate(over="ignore"):
        thresholds = thresholds.astype(dtype)
    lists = [random.integers(0, 70, random.integers(0, 5)) if flag else np.zeros(0, int) for flag in is_categorical]
    ends = np.cumsum([len(members) for members in lists])
    return RawTree(
        node_type=np.where(is_categorical, 2, inner).astype(np.int8),
        cleft=np.array(left, np.int32),
        cright=np.array(right, np.int32),
        split_index=np.where(inner, random.integers(0, NUM_FEATURES, size), -1).astype(np.int32),
        threshold=thresholds,
        cmp=random.integers(LESS, GREATER_EQUAL + 1, size).astype(np.int8),
        default_left=random.integers(0, 2, size).astype(np.uint8),
        leaf=random.normal(size=(size, width)).astype(dtype),
        category_list=np.concatenate(lists).astype(np.uint32),
        category_list_begin=(ends - [len(members) for members in lists]).astype(np.uint64),
        category_list_end=ends.astype(np.uint64),
        category_list_right_child=random.integers(0, 2, size).astype(np.uint8),
    )


@np.errstate(over="ignore", under="ignore")
def awkward_rows(random: np.random.Generator, trees: list[RawTree], num_rows: int) -> np.ndarray:
    """Rows of thresholds (ties), their float32 neighbours, categories, extremes, missing values and noise."""
    ties = np.concatenate([tree.threshold for tree in trees]).astype(np.float32)
    shape = (num_rows, NUM_FEATURES)
    tie = random.choice(ties, shape)
    choices = [
        tie,
        np.nextafter(tie, np.float32(np.inf)),
        np.nextafter(tie, np.float32(-np.inf)),
        random.choice(np.array(AWKWARD, np.float32), shape),
        random.normal(size=shape),
        random.integers(-2, 80, shape),
        random.uniform(-1, 80, shape),
        np.full(shape, np.nan),
    ]
    return np.choose(random.integers(0, len(choices), shape), choices).astype(np.float32)


def run_all(forest: Forest, rows: np.ndarray, post: int = IDENTITY, alpha: float = 1.0, columns: int = 0) -> dict:
    """The answers of every kernel that can take the forest."""
    scratch = Scratch(forest.sources.size, forest.num_features, forest.base)
    outs = {}

    def out(name: str) -> np.ndarray:
        outs[name] = np.full((len(rows), columns or forest.base.size), 7, np.float32)
        return outs[name]

    nodes = (forest.slot, forest.bound, forest.child, forest.category, forest.bitsets, forest.leaf)
    walk_blocks(rows, forest.sources, forest.columns, forest.roots, *nodes, forest.base, post, alpha,
                scratch.slots, scratch.total, out("walk"))  # fmt: skip
    if forest.has_complete_form:
        full = complete(forest)
        constants = (full.sources, full.columns, full.slot, full.bound, full.leaf, full.base, full.depth, post, alpha)
        score_rows(rows, *constants, scratch.slots, scratch.total, out("rows"))
        score_blocks(rows, *constants, scratch.slots, scratch.index, scratch.total, out("blocks"))
    return outs


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_trees=st.integers(1, 9),
    depth=st.integers(0, MAX_COMPLETE_DEPTH + 3),
    num_rows=st.sampled_from([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1]),
    dtype=st.sampled_from([np.float32, np.float64]),
    num_outputs=st.integers(1, 3),
    has_categories=st.booleans(),
)
def test_every_kernel_gives_the_sums_of_the_plain_twin(
    seed, num_trees, depth, num_rows, dtype, num_outputs, has_categories
):
    random = np.random.default_rng(seed)
    trees = [random_tree(random, depth, dtype=dtype, has_categories=has_categories) for _ in range(num_trees)]
    columns = random.integers(0, num_outputs, num_trees).astype(np.uint32)
    base = random.normal(size=num_outputs).astype(dtype)
    rows = awkward_rows(random, trees, num_rows)
    expected = reference_trees.sums(trees, columns, base, rows)
    outs = run_all(build_forest(trees, columns, base, NUM_FEATURES), rows)
    for name, found in outs.items():
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * (num_trees + 1), err_msg=name)
        assert np.array_equal(found, outs["walk"]), f"{name} sums in another order"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), depth=st.integers(0, 6), width=st.integers(2, 4))
def test_leaves_that_hold_vectors_add_to_every_output(seed, depth, width):
    random = np.random.default_rng(seed)
    trees = [random_tree(random, depth, dtype=np.float64, width=width) for _ in range(3)]
    columns, base = np.zeros(3, np.uint32), random.normal(size=width)
    rows = awkward_rows(random, trees, 9)
    outs = run_all(build_forest(trees, columns, base, NUM_FEATURES), rows)
    assert list(outs) == ["walk"]
    np.testing.assert_allclose(outs["walk"], reference_trees.sums(trees, columns, base, rows), atol=1e-5)


@pytest.mark.parametrize(
    ("post", "name", "alpha"),
    [
        (IDENTITY, "identity", 1.0),
        (SIGMOID, "sigmoid", 1.5),
        (SOFTMAX, "softmax", 1.0),
        (EXPONENTIAL, "exponential", 1.0),
        (STANDARD_RATIO, "exponential_standard_ratio", 3.0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_answers_are_those_of_the_plain_twin(post, name, alpha, dtype):
    random = np.random.default_rng(3)
    trees = [random_tree(random, 4, dtype=dtype) for _ in range(12)]
    columns, base = (np.arange(12) % 3).astype(np.uint32), np.array([0.5, -100, 30], dtype)
    rows = awkward_rows(random, trees, BLOCK + 3)
    expected = reference_trees.answers(reference_trees.sums(trees, columns, base, rows), name, alpha)
    for found in run_all(build_forest(trees, columns, base, NUM_FEATURES), rows, post, alpha).values():
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_one_probability_fills_two_columns_and_two_sums_fill_one():
    random = np.random.default_rng(4)
    trees = [random_tree(random, 3) for _ in range(4)]
    rows = awkward_rows(random, trees, 3)
    one_sum = build_forest(trees, np.zeros(4, np.uint32), np.zeros(1, np.float32), NUM_FEATURES)
    two_sums = build_forest(trees, np.array([0, 1, 0, 1], np.uint32), np.zeros(2, np.float32), NUM_FEATURES)
    for name, found in run_all(one_sum, rows, SIGMOID, columns=2).items():
        assert np.array_equal(found[:, 1:], run_all(one_sum, rows, SIGMOID)[name])
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    for name, found in run_all(two_sums, rows, columns=1).items():
        assert np.array_equal(found[:, 0], run_all(two_sums, rows)[name][:, 1])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0.0])
@pytest.mark.parametrize("threshold", [np.inf, -np.inf])
@pytest.mark.parametrize("operator", [2, 3, 4, 5])
@pytest.mark.parametrize("default_left", [0, 1])
def test_a_split_at_infinity_is_exact(value, threshold, operator, default_left):
    tree = dataclasses.replace(
        random_tree(np.random.default_rng(0), 1),
        threshold=np.full(3, threshold, np.float32),
        cmp=np.full(3, operator, np.int8),
        default_left=np.full(3, default_left, np.uint8),
    )
    rows = np.full((1, NUM_FEATURES), value, np.float32)
    base, columns = np.zeros(1, np.float32), np.zeros(1, np.uint32)
    expected = tree.leaf[reference_trees.leaf_of(tree, rows[0])]
    for found in run_all(build_forest([tree], columns, base, NUM_FEATURES), rows).values():
        assert found[0] == expected


def test_a_threshold_between_two_floats_splits_them_exactly():
    tree = dataclasses.replace(random_tree(np.random.default_rng(0), 1, dtype=np.float64), cmp=np.full(3, 3, np.int8))
    below = np.float32(0.1)
    above = np.nextafter(below, np.float32(1))
    threshold = (float(below) + float(above)) / 2
    tree = dataclasses.replace(tree, threshold=np.full(3, threshold))
    forest = build_forest([tree], np.zeros(1, np.uint32), np.zeros(1), NUM_FEATURES)
    rows = np.array([[below] * NUM_FEATURES, [above] * NUM_FEATURES], np.float32)
    for found in run_all(forest, rows).values():
        assert found.ravel().tolist() == tree.leaf[[1, 2], 0].astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("cleft", 99, "children outside"),
        ("cright", -1, "children outside"),
        ("cright", 1, "two ways"),
        ("cleft", 0, "two ways"),
        ("split_index", NUM_FEATURES, "features outside"),
        ("split_index", -1, "features outside"),
        ("cmp", 1, "compares by"),
        ("threshold", np.nan, "not a number"),
    ],
)
def test_arrays_that_are_no_tree_are_refused(field, value, says):
    tree = random_tree(np.random.default_rng(1), 2)
    getattr(tree, field)[0] = value
    with pytest.raises(MalformedForest, match=says):
        build_forest([tree], np.zeros(1, np.uint32), np.zeros(1, np.float32), NUM_FEATURES)


def test_a_category_list_out_of_range_is_refused():
    tree = random_tree(np.random.default_rng(1), 2, has_categories=True)
    tree.category_list_end[0] = 10**9
    with pytest.raises(MalformedForest, match="category lists"):
        build_forest([tree], np.zeros(1, np.uint32), np.zeros(1, np.float32), NUM_FEATURES)
