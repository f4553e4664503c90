"""The SHAP kernel against its plain twin on random trees, and against XGBoost and LightGBM on boosters of theirs."""

from __future__ import annotations

import dataclasses
import threading

import lightgbm
import numpy as np
import pytest
import treelite
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference_shap
from kernels.forest import CATEGORICAL_NODE, GREATER_EQUAL, LESS, MalformedForest, RawTree
from kernels.shap import Scratch, contributions
from kernels.shap_forest import TERMS, ShapForest, Unexplainable, build_shap_forest, load, save

TINY, HUGE, SUBNORMAL = np.finfo(np.float32).tiny, np.finfo(np.float32).max, np.float32(1e-45)
AWKWARD = [0.0, -0.0, 1.0, -1.0, 1 / 3, SUBNORMAL, -SUBNORMAL, TINY, HUGE, -HUGE, np.inf, -np.inf]


def random_tree(random: np.random.Generator, depth: int, num_features: int) -> tuple[RawTree, np.ndarray]:
    """A tree of at most `depth` levels and its covers; few thresholds, so that splits repeat; some covers are 0."""
    left, right, cover, frontier = [-1], [-1], [random.uniform(1, 1e4)], [0]
    for _ in range(depth):
        grown = [node for node in frontier if cover[node] > 0 and (node == frontier[0] or random.random() < 0.6)]
        frontier = []
        for node in grown:
            left[node], right[node] = len(left), len(left) + 1
            share = random.choice([0.0, 1e-5, 1.0, *random.uniform(0.01, 0.99, 9)])
            cover += [cover[node] * share, cover[node] * (1 - share)]
            left += [-1, -1]
            right += [-1, -1]
            frontier += [left[node], right[node]]
    size = len(left)
    inner = np.array(left) >= 0
    none = np.zeros(size, np.uint64)
    tree = RawTree(
        node_type=inner.astype(np.int8),
        cleft=np.array(left, np.int32),
        cright=np.array(right, np.int32),
        split_index=np.where(inner, random.integers(0, num_features, size), -1).astype(np.int32),
        threshold=random.choice(np.array([*AWKWARD, *random.normal(size=6)], np.float32), size),
        cmp=random.integers(LESS, GREATER_EQUAL + 1, size).astype(np.int8),
        default_left=random.integers(0, 2, size).astype(np.uint8),
        leaf=random.normal(size=(size, 1)).astype(np.float32),
        category_list=np.zeros(0, np.uint32),
        category_list_begin=none,
        category_list_end=none,
        category_list_right_child=np.zeros(size, np.uint8),
    )
    return tree, np.array(cover)


@np.errstate(over="ignore", under="ignore")
def awkward_rows(random: np.random.Generator, thresholds: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Rows of thresholds (ties), their float32 neighbours, extremes, missing values and noise."""
    tie = random.choice(thresholds.astype(np.float32), shape)
    choices = [
        tie,
        np.nextafter(tie, np.float32(np.inf)),
        np.nextafter(tie, np.float32(-np.inf)),
        random.choice(np.array(AWKWARD, np.float32), shape),
        random.normal(size=shape),
        np.full(shape, np.nan),
    ]
    return np.choose(random.integers(0, len(choices), shape), choices).astype(np.float32)


def explain(forest: ShapForest, rows: np.ndarray) -> np.ndarray:
    out = np.full((len(rows), forest.num_features + 1), 7, np.float32)
    contributions(forest, Scratch(forest), rows, out)
    return out


def imported(model: treelite.Model, cover: str) -> ShapForest:
    """A model of one output as Treelite has read it; `cover` is the field that holds the covers."""
    trees, covers = [], []
    for accessor in (model.get_tree_accessor(index) for index in range(model.num_tree)):
        fields = {
            field.name: accessor.get_field(field.name) for field in dataclasses.fields(RawTree) if field.name != "leaf"
        }
        trees.append(RawTree(leaf=accessor.get_field("leaf_value")[:, None], **fields))
        covers.append(accessor.get_field(cover).astype(np.float64))
    base = float(model.get_header_accessor().get_field("base_scores")[0])
    return build_shap_forest(trees, covers, base, model.num_feature)


def booster_data(seed: int, num_rows: int, num_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of few values (ties), of many, and of huge and subnormal ones, a tenth missing, and a label."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(num_rows, num_features))
    rows[:, ::3] = np.round(rows[:, ::3])
    rows[:, 1::5] *= 1e37
    rows[:, 2::5] *= 1e-44
    labels = np.sign(rows).sum(axis=1) + np.sign(rows[:, 0] * rows[:, -1]) + random.normal(size=num_rows)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows.astype(np.float32), labels


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_trees=st.integers(1, 4),
    depth=st.integers(0, 6),
    num_features=st.integers(1, 5),
    num_rows=st.sampled_from([0, 1, 3]),
)
def test_contributions_are_the_shapley_values_of_the_definition(seed, num_trees, depth, num_features, num_rows):
    random = np.random.default_rng(seed)
    trees, covers = zip(*(random_tree(random, depth, num_features) for _ in range(num_trees)), strict=True)
    thresholds = np.concatenate([tree.threshold for tree in trees])
    rows = awkward_rows(random, thresholds, (num_rows, num_features))
    found = explain(build_shap_forest(trees, covers, 0.25, num_features), rows)
    np.testing.assert_allclose(found, reference_shap.contributions(trees, covers, 0.25, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_features", [9, 10])
def test_paths_of_more_features_than_one_block_of_points_can_take_are_exact(num_features):
    random = np.random.default_rng(num_features)
    tree, cover = random_tree(random, 14, num_features)
    rows = awkward_rows(random, tree.threshold, (2, num_features))
    forest = build_shap_forest([tree], [cover], 0.0, num_features)
    assert forest.terms.size == 2 * forest.splits.size * 3 * TERMS
    np.testing.assert_allclose(
        explain(forest, rows), reference_shap.contributions([tree], [cover], 0.0, rows), atol=1e-5
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.sampled_from([1, 2, 6, 9, 16]),
    num_features=st.integers(1, 25),
    num_rounds=st.integers(1, 12),
    objective=st.sampled_from(["reg:squarederror", "binary:logistic", "count:poisson"]),
)
def test_contributions_equal_those_of_xgboost(seed, depth, num_features, num_rounds, objective):
    rows, labels = booster_data(seed, 300, num_features)
    labels = labels if objective == "reg:squarederror" else (labels > 0).astype(float)
    settings = {"max_depth": depth, "objective": objective, "min_child_weight": 0.01, "nthread": 1, "seed": 1}
    booster = xgboost.train(settings, xgboost.DMatrix(rows, labels), num_rounds)
    forest = imported(treelite.frontend.from_xgboost(booster), "sum_hess")
    awkward = awkward_rows(np.random.default_rng(seed), rows[:50].ravel(), (20, num_features))
    rows = np.concatenate([rows[:40], np.clip(awkward, -HUGE, HUGE)])  # XGBoost refuses infinity
    found = explain(forest, rows)
    assert_close(found, booster.predict(xgboost.DMatrix(rows), pred_contribs=True))
    margins = booster.predict(xgboost.DMatrix(rows), output_margin=True)
    assert (np.abs(found.sum(axis=1) - margins) <= 1e-4 * np.maximum(1, np.abs(margins))).all()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    allowed = 1e-4 * np.maximum(1, np.abs(expected.sum(axis=1, keepdims=True)))
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= allowed).all(), np.abs(found - expected).max()


def test_contributions_equal_those_of_lightgbm():
    rows, labels = booster_data(5, 500, 7)
    settings = {"objective": "regression", "num_leaves": 24, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows.astype(np.float64), labels), 20)
    forest = imported(treelite.frontend.from_lightgbm(booster), "data_count")
    assert_close(explain(forest, rows[:60]), booster.predict(rows[:60].astype(np.float64), pred_contrib=True))


def test_contributions_scale_with_huge_and_subnormal_leaves():
    random = np.random.default_rng(7)
    tree, cover = random_tree(random, 5, 4)
    rows = awkward_rows(random, tree.threshold, (4, 4))
    expected = reference_shap.contributions([tree], [cover], 0.0, rows)
    for scale in (1e35, 1e-35):
        scaled = dataclasses.replace(tree, leaf=(tree.leaf * scale).astype(np.float32))
        found = explain(build_shap_forest([scaled], [cover], 0.0, 4), rows)
        np.testing.assert_allclose(found / scale, expected, atol=1e-5)


def test_trees_of_one_leaf_give_everything_to_the_base():
    random = np.random.default_rng(0)
    trees, covers = zip(*(random_tree(random, 0, 3) for _ in range(3)), strict=True)
    found = explain(build_shap_forest(trees, covers, -1.0, 3), np.full((2, 3), np.nan, np.float32))
    assert (found[:, :3] == 0).all()
    np.testing.assert_allclose(found[:, 3], sum(tree.leaf[0, 0] for tree in trees) - 1, rtol=1e-6)


def test_a_saved_forest_explains_alike(tmp_path):
    random = np.random.default_rng(1)
    tree, cover = random_tree(random, 5, 4)
    forest, rows = build_shap_forest([tree], [cover], 0.5, 4), awkward_rows(random, tree.threshold, (5, 4))
    save(forest, tmp_path / "shap.npz")
    assert np.array_equal(explain(load(tmp_path / "shap.npz"), rows), explain(forest, rows))


def test_a_saved_forest_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / "shap.npz"
    tree, cover = random_tree(np.random.default_rng(1), 5, 4)
    save(build_shap_forest([tree], [cover], 0.5, 4), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MalformedForest, match="does not hold a ShapForest"):
        load(path)


def test_threads_that_share_a_scratch_do_not_disturb_each_other():
    random = np.random.default_rng(2)
    trees, covers = zip(*(random_tree(random, 6, 5) for _ in range(40)), strict=True)
    forest = build_shap_forest(trees, covers, 0.0, 5)
    rows = [awkward_rows(random, trees[0].threshold, (200, 5)) for _ in range(4)]
    scratch, found = Scratch(forest), [np.zeros((200, 6), np.float32) for _ in rows]
    threads = [threading.Thread(target=contributions, args=(forest, scratch, rows[k], found[k])) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part, values in zip(rows, found, strict=True):
        assert np.array_equal(values, explain(forest, part))


def test_categorical_splits_are_refused():
    tree, cover = random_tree(np.random.default_rng(3), 2, 4)
    tree.node_type[0] = CATEGORICAL_NODE
    with pytest.raises(Unexplainable, match="categorical"):
        build_shap_forest([tree], [cover], 0.0, 4)


def test_leaves_that_hold_vectors_are_refused():
    tree, cover = random_tree(np.random.default_rng(3), 2, 4)
    with pytest.raises(Unexplainable, match="tree 0 has leaves of 2 values; allowed 1"):
        build_shap_forest([dataclasses.replace(tree, leaf=np.tile(tree.leaf, 2))], [cover], 0.0, 4)


@pytest.mark.parametrize(
    ("node", "cover", "says"), [(0, 0.0, "above 0"), (1, -1.0, "above 0"), (1, np.nan, "finite"), (0, np.inf, "finite")]
)
def test_covers_that_average_nothing_are_refused(node, cover, says):
    tree, covers = random_tree(np.random.default_rng(3), 2, 4)
    covers[node] = cover
    with pytest.raises(MalformedForest, match=says):
        build_shap_forest([tree], [covers], 0.0, 4)


def test_missing_covers_are_refused():
    tree, _ = random_tree(np.random.default_rng(3), 2, 4)
    with pytest.raises(MalformedForest, match="tree 0 has 0 covers"):
        build_shap_forest([tree], [np.zeros(0)], 0.0, 4)


@pytest.mark.parametrize(
    ("rows", "out"),
    [
        (np.zeros((2, 4), np.float64), np.zeros((2, 5), np.float32)),
        (np.zeros((2, 3), np.float32), np.zeros((2, 5), np.float32)),
        (np.zeros((4, 2), np.float32).T, np.zeros((2, 5), np.float32)),
        (np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)),
        (np.zeros((2, 4), np.float32), np.zeros((1, 5), np.float32)),
    ],
)
def test_arrays_of_another_shape_type_or_layout_are_refused(rows, out):
    tree, cover = random_tree(np.random.default_rng(3), 2, 4)
    forest = build_shap_forest([tree], [cover], 0.0, 4)
    with pytest.raises(ValueError, match="allowed C-contiguous float32"):
        contributions(forest, Scratch(forest), rows, out)
