"""The `stacked` backend: members score as their libraries do, reasons add up, and wrong files are named."""

from __future__ import annotations

import json
import shutil

import lightgbm
import numpy as np
import pytest
import treelite
import xgboost
from sklearn.ensemble import IsolationForest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from kernels import reference_network, reference_stacking
from serve.backends.base import ModelSpec, TensorSpec
from serve.backends.network import write_network
from serve.backends.stacked import StackedModel, load_stacked
from serve.errors import InvalidInput, ModelLoadError, NotReady
from serve.repository.cache import ArtefactCache

NUM_FEATURES = 5
WEIGHTS = np.array([0.5, 0.4, 0.1, 0.2])
BIAS = -0.3


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with_entries = ArtefactCache(tmp_path_factory.mktemp("cache") / "artefacts", 1 << 30)
    yield with_entries
    with_entries.close()


def training_set() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(500, NUM_FEATURES)).astype(np.float32)
    labels = (rows[:, 0] * rows[:, 1] + random.normal(size=500) / 3 > 0).astype(int)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows, labels


class Expected:
    """The members as their own libraries have them."""

    def __init__(self) -> None:
        rows, labels = training_set()
        self.fill = np.nanmean(rows, axis=0)
        self.xgboost = xgboost.train(
            {"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, labels), 10
        )
        parameters = {"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1}
        self.lightgbm = lightgbm.train(parameters, lightgbm.Dataset(rows, labels), 10)
        self.forest = IsolationForest(n_estimators=10, random_state=0).fit(self.filled(rows))
        random = np.random.default_rng(1)
        self.mean, self.scale = np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES)
        self.layers = [(random.normal(size=(NUM_FEATURES, 4)), np.zeros(4)), (random.normal(size=(4, 1)), np.zeros(1))]

    def filled(self, rows: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(rows), self.fill, rows).astype(np.float32)

    def members(self, rows: np.ndarray) -> np.ndarray:
        columns = [
            self.xgboost.predict(xgboost.DMatrix(rows)),
            self.lightgbm.predict(rows),
            -self.forest.score_samples(self.filled(rows)),
            reference_network.score(self.layers, reference_network.inputs(rows, self.mean, self.scale)),
        ]
        return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def expected() -> Expected:
    return Expected()


def member(name: str, kind: str, file: str, weight: float, **more: object) -> dict[str, object]:
    return {"name": name, "type": kind, "file": file, "weight": weight, "mean_log_odds": -0.25, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, expected):
    path = tmp_path_factory.mktemp("ensemble") / "1"
    path.mkdir()
    expected.xgboost.save_model(path / "xgboost.ubj")
    expected.lightgbm.save_model(path / "lightgbm.txt")
    treelite.sklearn.import_model(expected.forest).serialize(path / "forest.tl")
    write_network(path / "network.npz", expected.mean, expected.scale, expected.layers)
    members = [
        member("xgboost", "xgboost_ubj", "xgboost.ubj", WEIGHTS[0]),
        member("lightgbm", "lightgbm", "lightgbm.txt", WEIGHTS[1]),
        member("forest", "treelite_checkpoint", "forest.tl", WEIGHTS[2], needs_values=True),
        member("network", "network", "network.npz", WEIGHTS[3]),
    ]
    content = {"members": members, "bias": BIAS, "fill": expected.fill.tolist()}
    (path / "stacked.json").write_text(json.dumps(content))
    return path


def load(folder, cache, **changes) -> StackedModel:
    spec = ModelSpec("ensemble", "1", "stacked", "stacked", 64, changes.get("inputs", ()), changes.get("outputs", ()))
    return load_stacked(folder, ModelConfig(name="ensemble"), spec, lambda line: None, cache=cache)


@pytest.fixture(scope="module")
def model(folder, cache) -> StackedModel:
    return load(folder, cache)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 300])
def test_members_score_as_their_libraries_and_the_ensemble_as_the_plain_twin(model, expected, num_rows):
    rows = training_set()[0][:num_rows]
    scores = model.score(rows)
    members = expected.members(rows) if num_rows else np.zeros((0, 4))
    np.testing.assert_allclose(scores.members, members, atol=1e-5)
    np.testing.assert_allclose(scores.probability, reference_stacking.stack(members, WEIGHTS, BIAS), atol=1e-5)


def test_infer_gives_both_classes_and_the_members(model, expected):
    rows = training_set()[0][:9]
    outputs = model.infer({"input__0": rows})
    assert {name: tensor.shape for name, tensor in outputs.items()} == {"output__0": (9, 2), "members__0": (9, 4)}
    np.testing.assert_allclose(outputs["output__0"].sum(axis=1), 1)
    assert [tensor.name for tensor in model.spec.outputs] == list(outputs)


def test_contributions_are_the_explained_members_and_leave_the_rest(model, expected):
    rows = training_set()[0][:50]
    found = model.contributions(rows)
    of_trees = WEIGHTS[0] * expected.xgboost.predict(xgboost.DMatrix(rows), pred_contribs=True)
    of_trees += WEIGHTS[1] * expected.lightgbm.predict(rows, pred_contrib=True)
    np.testing.assert_allclose(found[:, :-1], of_trees[:, :-1], atol=1e-4)
    unexplained = model.score(rows).log_odds - found.sum(axis=1)
    others = reference_stacking.log_odds(expected.members(rows)[:, 2:]) + 0.25
    np.testing.assert_allclose(unexplained, others @ WEIGHTS[2:], atol=1e-3)


def test_rows_are_left_as_they_are(model):
    rows = training_set()[0][:20]
    before = rows.tobytes()
    model.score(rows)
    model.contributions(rows)
    assert rows.tobytes() == before


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float64), np.zeros(5, np.float32)], ids=str
)
def test_a_tensor_that_does_not_fit_is_named(model, rows):
    with pytest.raises(InvalidInput, match="input__0"):
        model.infer({"input__0": rows})


def test_a_closed_model_says_so(folder, cache):
    model = load(folder, cache)
    model.close()
    with pytest.raises(NotReady, match="closed"):
        model.score(training_set()[0][:1])


def changed(folder, tmp_path, change) -> object:
    copy = tmp_path / "1"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "stacked.json").read_text())
    change(content)
    (copy / "stacked.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda c: c.pop("bias"), "bias"),
        (lambda c: c.update(members=[]), "members"),
        (lambda c: c["members"][0].update(type="pickle"), "pickle"),
        (lambda c: c["members"][0].update(file="../xgboost.ubj"), "file"),
        (lambda c: c["members"][0].update(file="missing.ubj"), "missing.ubj"),
        (lambda c: c["members"][1].update(name="xgboost"), "each name once"),
        (lambda c: c["members"][0].update(weight=1e999), "stacked"),
        (lambda c: c.update(fill=c["fill"][:-1]), "5 features"),
        (lambda c: c.update(extra=1), "extra"),
    ],
)
def test_a_wrong_description_is_refused_by_what_is_wrong(folder, cache, tmp_path, change, names):
    with pytest.raises(ModelLoadError, match=names):
        load(changed(folder, tmp_path, change), cache)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x00" * 100])
def test_a_damaged_network_is_refused_by_its_file(folder, cache, tmp_path, damage):
    copy = changed(folder, tmp_path, lambda content: None)
    (copy / "network.npz").write_bytes(damage)
    with pytest.raises(ModelLoadError, match=r"network\.npz"):
        load(copy, cache)


def test_a_configuration_that_says_otherwise_is_refused(folder, cache):
    with pytest.raises(ModelLoadError, match="another input"):
        load(folder, cache, inputs=(TensorSpec("input__0", "FP32", (6,)),))
