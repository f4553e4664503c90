"""The `fil` backend against the libraries that trained the models, in every form, and against damaged files."""

from __future__ import annotations

import threading
import tracemalloc

import lightgbm
import numpy as np
import pytest
import sklearn.ensemble
import treelite
import xgboost
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends import trees
from serve.backends.base import ModelSpec, TensorSpec
from serve.backends.tree_forms import SIZES, Plan, probe_rows
from serve.backends.tree_import import FILE_NAMES, import_here, imported_trees, load_treelite
from serve.backends.trees import TreeModel, load_trees
from serve.errors import InvalidInput, ModelLoadError, NotReady, Unsupported
from serve.repository.cache import ArtefactCache

NUM_FEATURES = 6
BATCHES = (0, 1, 2, 7, 64, 65, 300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with_entries = ArtefactCache(tmp_path_factory.mktemp("cache") / "artefacts", 1 << 30)
    yield with_entries
    with_entries.close()


def training_set(num_rows=600, num_classes=2):
    random = np.random.default_rng(0)
    rows = random.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    rows[:, 5] = random.integers(0, 40, num_rows)
    score = rows[:, 0] + rows[:, 1] * (rows[:, 5] % 3) + random.normal(size=num_rows) / 5
    labels = np.searchsorted(np.quantile(score, np.arange(1, num_classes) / num_classes), score)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows, labels


def train_xgboost(objective, num_classes=2, num_trees=12, is_categorical=False, **parameters):
    rows, labels = training_set(num_classes=num_classes)
    types = ["q"] * 5 + ["c" if is_categorical else "q"]
    settings = {"objective": objective, "max_depth": 4, "nthread": 1, "seed": 0, "max_cat_to_onehot": 3}
    settings |= ({"num_class": num_classes} if num_classes > 2 else {}) | parameters
    matrix = xgboost.DMatrix(rows, labels, feature_types=types, enable_categorical=True)
    booster = xgboost.train(settings, matrix, num_trees)

    def predict(rows):
        matrix = xgboost.DMatrix(rows, feature_types=types, enable_categorical=True)
        found = booster.predict(matrix, validate_features=False)
        return np.stack([1 - found, found], axis=1) if objective == "binary:logistic" else found.reshape(len(rows), -1)

    return booster, predict


def train_lightgbm(objective, num_classes=2, categories="auto", **parameters):
    rows, labels = training_set(num_classes=num_classes)
    settings = {"objective": objective, "num_threads": 1, "verbose": -1, "num_leaves": 40, "min_data_in_leaf": 3}
    settings |= ({"num_class": num_classes} if num_classes > 2 else {}) | parameters
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, labels, categorical_feature=categories), 10)

    def predict(rows):
        found = booster.predict(rows.astype(np.float64), num_threads=1)
        return np.stack([1 - found, found], axis=1) if objective == "binary" else found.reshape(len(rows), -1)

    return booster, predict


def xgboost_case(folder, *arguments, **parameters):
    booster, predict = train_xgboost(*arguments, **parameters)
    booster.save_model(folder / "xgboost.json")
    return "xgboost_json", predict


def lightgbm_case(folder, *arguments, **parameters):
    booster, predict = train_lightgbm(*arguments, **parameters)
    booster.save_model(folder / "model.txt")
    return "lightgbm", predict


def sklearn_case(folder, estimator, predict):
    rows, labels = training_set(num_classes=3)
    rows = np.nan_to_num(rows)
    model = estimator.fit(rows, labels)
    treelite.sklearn.import_model(model).serialize(folder / "checkpoint.tl")
    return "treelite_checkpoint", lambda rows: getattr(model, predict)(rows).reshape(len(rows), -1)


CASES = {
    "binary": lambda folder: xgboost_case(folder, "binary:logistic"),
    "regression": lambda folder: xgboost_case(folder, "reg:squarederror"),
    "poisson": lambda folder: xgboost_case(folder, "count:poisson"),
    "multi-class": lambda folder: xgboost_case(folder, "multi:softprob", num_classes=4),
    "categorical": lambda folder: xgboost_case(folder, "binary:logistic", is_categorical=True),
    "deep": lambda folder: xgboost_case(folder, "reg:squarederror", max_depth=14, num_trees=4, min_child_weight=0),
    "single leaf": lambda folder: xgboost_case(folder, "binary:logistic", max_depth=1, gamma=1e9, base_score=0.3),
    "dart": lambda folder: xgboost_case(folder, "binary:logistic", booster="dart", rate_drop=0.5),
    "forest of xgboost": lambda folder: xgboost_case(folder, "binary:logistic", num_parallel_tree=3, num_trees=3),
    "lightgbm": lambda folder: lightgbm_case(folder, "binary"),
    "lightgbm, categorical": lambda folder: lightgbm_case(folder, "regression", categories=[5]),
    "lightgbm, multi-class": lambda folder: lightgbm_case(folder, "multiclass", num_classes=3),
    "lightgbm, one against all": lambda folder: lightgbm_case(folder, "multiclassova", num_classes=3),
    "lightgbm, random forest": lambda folder: lightgbm_case(
        folder, "regression", boosting="rf", bagging_freq=1, bagging_fraction=0.5
    ),
    "sklearn, classifier": lambda folder: sklearn_case(
        folder, sklearn.ensemble.RandomForestClassifier(4, random_state=0, n_jobs=1), "predict_proba"
    ),
    "sklearn, regressor": lambda folder: sklearn_case(
        folder, sklearn.ensemble.ExtraTreesRegressor(5, max_depth=6, random_state=0, n_jobs=1), "predict"
    ),
    "sklearn, boosted": lambda folder: sklearn_case(
        folder, sklearn.ensemble.GradientBoostingRegressor(n_estimators=9, random_state=0), "predict"
    ),
}


def load(folder, model_type, cache, progress=lambda line: None, **spec):
    settings = {"max_batch_size": 4096, "inputs": (), "outputs": (), "parameters": {"model_type": model_type}} | spec
    return load_trees(folder, ModelConfig(), ModelSpec("m", "1", "fil", "fil", **settings), progress, cache=cache)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("model")
    model_type, predict = CASES[request.param](folder)
    imported = imported_trees(load_treelite(folder / FILE_NAMES[model_type], model_type))
    rows = probe_rows(imported.forest, max(BATCHES), 0.0 if model_type == "treelite_checkpoint" else 0.15)
    if (
        model_type == "lightgbm"
    ):  # which takes values up to 1e-35 for zero before it looks at the trees; nobody else does
        rows[np.abs(rows) < 1e-34] = 0
    return folder, model_type, predict, rows


def test_every_form_gives_the_answers_of_the_library(case, cache, monkeypatch):
    folder, model_type, predict, rows = case
    expected = predict(rows)
    tried = []

    def only(name):
        return lambda forms, *_: tried.append(name) or Plan((name,) * len(SIZES), dict.fromkeys(forms, (0.0,)))

    def check(model, name):
        for size in BATCHES:
            found = model.infer({"input__0": rows[:size]})["output__0"]
            np.testing.assert_allclose(found, expected[:size], rtol=2e-5, atol=2e-6, err_msg=f"{name}, {size} rows")

    monkeypatch.setattr(trees, "import_model", import_here)
    measured = load(folder, model_type, cache)
    check(measured, "measured")
    assert measured.engine == "treelite+numba"
    for name in measured.plan.cost_us:
        monkeypatch.setattr(trees, "measure", only(name))
        check(load(folder, model_type, cache), name)
    assert tried == list(measured.plan.cost_us)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("binary")
    booster, predict = train_xgboost("binary:logistic")
    booster.save_model(folder / "xgboost.json")
    booster.save_model(folder / "xgboost.ubj")
    treelite.frontend.load_xgboost_model(folder / "xgboost.json").serialize(folder / "checkpoint.tl")
    train_lightgbm("binary")[0].save_model(folder / "model.txt")
    return folder, booster, predict


def test_scores_go_into_a_preallocated_array(binary, cache):
    model = load(binary[0], "xgboost_ubj", cache)
    rows = training_set()[0]
    expected = model.infer({"input__0": rows})["output__0"][:, 1]
    out = np.zeros(len(rows), np.float32)
    model.score_into(rows, out)
    assert np.array_equal(out, expected)
    tracemalloc.start()
    model.score_into(rows, out)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2048


def test_threads_do_not_disturb_each_other(binary, cache):
    model = load(binary[0], "xgboost_json", cache)
    rows = training_set()[0]
    expected = model.infer({"input__0": rows})["output__0"]
    wrong = []

    def work(offset):
        for size in (1, 3, 70, 500) * 20:
            found = model.infer({"input__0": rows[offset : offset + size]})["output__0"]
            if not np.allclose(found, expected[offset : offset + size], atol=1e-6):
                wrong.append((offset, size))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 20, 40, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_of_any_layout_are_scored_alike(binary, cache):
    model = load(binary[0], "xgboost_json", cache)
    rows = training_set()[0][:40]
    expected = model.infer({"input__0": rows})["output__0"]
    read_only = np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape)
    unaligned = np.frombuffer(b"x" + rows.tobytes(), np.float32, offset=1).reshape(rows.shape)
    for other in (read_only, unaligned, np.asfortranarray(rows), np.repeat(rows, 2, axis=0)[::2]):
        assert np.array_equal(model.infer({"input__0": other})["output__0"], expected)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "input__0 is missing"),
        ({"input__0": np.zeros((2, NUM_FEATURES))}, "element type float64; allowed float32"),
        ({"input__0": np.zeros((2, 5), np.float32)}, r"shape \[2, 5\]; allowed \[n, 6\]"),
        ({"input__0": np.zeros(NUM_FEATURES, np.float32)}, r"shape \[6\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(binary, cache, inputs, says):
    with pytest.raises(InvalidInput, match=says):
        load(binary[0], "xgboost_json", cache).infer(inputs)


@pytest.mark.parametrize(
    ("rows", "out"),
    [
        (np.zeros((2, 6)), np.zeros(2, np.float32)),
        (np.zeros((2, 5), np.float32), np.zeros(2, np.float32)),
        (np.zeros((2, 6), np.float32), np.zeros(3, np.float32)),
        (np.zeros((2, 6), np.float32), np.zeros(2)),
        (np.zeros((4, 6), np.float32)[::2], np.zeros(2, np.float32)),
    ],
)
def test_arrays_the_kernels_cannot_take_are_refused(binary, cache, rows, out):
    with pytest.raises(InvalidInput, match="allowed C-contiguous float32"):
        load(binary[0], "xgboost_json", cache).score_into(rows, out)


def test_contributions_add_up_to_the_sum_before_the_sigmoid(binary, cache):
    folder, booster, _ = binary
    rows = training_set()[0][:20]
    values = load(folder, "xgboost_ubj", cache).contributions(rows)
    assert values.shape == (20, NUM_FEATURES + 1)
    margin = booster.predict(xgboost.DMatrix(rows), output_margin=True)
    np.testing.assert_allclose(values.sum(axis=1), margin, atol=1e-4)


def test_contributions_of_a_model_without_its_librarys_weights_are_not_offered(binary, cache):
    with pytest.raises(Unsupported, match="SHAP"):
        load(binary[0], "treelite_checkpoint", cache).contributions(training_set()[0][:1])


def test_contributions_of_lightgbm_are_its_own(cache, tmp_path):
    rows, labels = training_set()
    parameters = {"objective": "binary", "num_leaves": 15, "max_depth": 5, "num_threads": 1, "verbose": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(rows, labels), 20)
    booster.save_model(tmp_path / "model.txt")
    expected = booster.predict(rows[:100], pred_contrib=True)
    found = load(tmp_path, "lightgbm", cache).contributions(rows[:100])
    allowed = 1e-4 * np.maximum(1, np.abs(expected.sum(axis=1, keepdims=True)))
    assert (np.abs(found - expected) <= allowed).all()


def test_a_closed_model_says_so(binary, cache):
    model = load(binary[0], "xgboost_json", cache)
    model.close()
    with pytest.raises(NotReady, match="closed"):
        model.infer({"input__0": np.zeros((1, 6), np.float32)})


def test_without_a_compiler_the_numba_kernels_serve_alone(binary, cache, monkeypatch, tmp_path):
    lines = []
    monkeypatch.setenv("PATH", str(tmp_path))
    model = load(binary[0], "xgboost_json", cache, lines.append)
    assert model.engine == "numba"
    assert set(model.plan.names) <= {"rows", "blocks"}
    assert any("no C compiler" in line for line in lines)


def test_compiled_trees_that_disagree_are_not_used(binary, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    train_xgboost("binary:logistic", max_depth=2)[0].save_model(other / "xgboost.json")

    def import_another(model_file, model_type, folder):
        import_here(other / "xgboost.json", model_type, folder)
        (folder / "forest.npz").unlink()
        import_here(model_file, model_type, other)
        (other / "forest.npz").rename(folder / "forest.npz")

    monkeypatch.setattr(trees, "import_model", import_another)
    lines = []
    cache = ArtefactCache(other / "cache", 1 << 30)
    assert load(binary[0], "xgboost_json", cache, lines.append).engine == "numba"
    assert any("disagree with the kernels on" in line for line in lines)


def test_a_cache_that_cannot_be_used_costs_only_the_compiled_form(binary, tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "import_model", import_here)
    root = tmp_path / "open"
    root.mkdir(mode=0o755)
    lines = []
    model = load(binary[0], "xgboost_json", ArtefactCache(root, 1 << 30), lines.append)
    assert model.engine == "numba"
    assert sum("mode 0755; allowed 0700" in line for line in lines) == 2


def test_the_second_load_reads_no_model_and_compiles_nothing(binary, cache, monkeypatch):
    load(binary[0], "xgboost_json", cache)
    monkeypatch.setattr(trees, "import_model", lambda *_: pytest.fail("imported again"))
    assert load(binary[0], "xgboost_json", cache).engine == "treelite+numba"


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ((TensorSpec("input__0", "FP32", (7,)),), (), "the model needs one FP32 input of dims \\[6\\]"),
        ((TensorSpec("input__0", "FP64", (6,)),), (), "FP64"),
        ((), (TensorSpec("output__0", "FP32", (3,)),), "dims \\[2\\] or \\[1\\]"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_refused(binary, cache, inputs, outputs, says):
    with pytest.raises(ModelLoadError, match=says):
        load(binary[0], "xgboost_json", cache, inputs=inputs, outputs=outputs)


def test_one_output_column_is_the_probability_of_class_1(binary, cache):
    outputs = (TensorSpec("score", "FP32", (1,)),)
    rows = training_set()[0]
    found = load(binary[0], "xgboost_json", cache, outputs=outputs).infer({"input__0": rows})["score"]
    np.testing.assert_allclose(found[:, 0], binary[2](rows)[:, 1], atol=1e-6)


def test_tensors_left_out_of_the_configuration_are_filled_in(binary, cache):
    spec = load(binary[0], "xgboost_json", cache).spec
    assert spec.inputs == (TensorSpec("input__0", "FP32", (6,)),)
    assert spec.outputs == (TensorSpec("output__0", "FP32", (2,)),)
    assert "from 1" in spec.parameters["forms"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"model_type": "catboost"}, "model_type is catboost; allowed xgboost_json"),
        ({"model_type": "xgboost_json", "output_class": "true"}, "predict_proba"),
    ],
)
def test_what_is_not_offered_is_named(binary, cache, parameters, says):
    with pytest.raises(Unsupported, match=says):
        load(binary[0], "", cache, parameters=parameters)


def test_a_post_processor_that_is_not_offered_is_named(tmp_path, cache):
    xgboost_case(tmp_path, "binary:hinge")
    with pytest.raises(Unsupported, match="post-processor hinge; allowed identity"):
        load(tmp_path, "xgboost_json", cache)


def test_a_missing_file_is_named(tmp_path, cache):
    with pytest.raises(ModelLoadError, match=r"xgboost\.json is missing"):
        load(tmp_path, "xgboost_json", cache)


def test_another_file_name_is_taken_from_the_configuration(binary, cache, tmp_path):
    (tmp_path / "mine").write_bytes((binary[0] / "xgboost.json").read_bytes())
    spec = ModelSpec("m", "1", "fil", "fil", 8, (), (), {})
    model = load_trees(tmp_path, ModelConfig(default_model_filename="mine"), spec, lambda line: None, cache=cache)
    assert isinstance(model, TreeModel)
