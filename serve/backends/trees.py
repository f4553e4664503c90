"""The `fil` backend: XGBoost, LightGBM and Treelite tree models.

Enters: a version's folder and its configuration. Leaves: a `TreeModel`. Called by the model repository; flows and the
protocol's `infer` call the model. What is derived from the file, the rewritten trees and their machine code, is kept in
the artefact cache. Without a C compiler, or without room for its output, the Numba kernels serve alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig

from kernels.forest import F32, Forest
from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.backends.tree_forms import (
    SIZES,
    Form,
    Plan,
    compiled_form,
    make_scratch,
    measure,
    num_disagreeing,
    numba_forms,
    probe_rows,
)
from serve.backends.tree_import import FILE_NAMES, IMPORT_REVISION, ImportedTrees, import_model, read_forest
from serve.backends.tree_library import FLAGS, TreeLibrary, build_library, find_compiler, open_library
from serve.backends.tree_shap import Explainer, read_explainer
from serve.errors import DependencyFailed, InvalidInput, ModelLoadError, NotReady, Unsupported
from serve.repository.cache import ArtefactCache, artefact_key, cpu_features

Progress = Callable[[str], None]

INPUT, OUTPUT = "input__0", "output__0"

_FLOAT32 = np.dtype(np.float32)


class TreeModel:
    """A loaded tree model. Thread-safe: what a call writes besides its answers belongs to its thread.

    Answers are probabilities per class for classifiers (two columns for a binary one) and the prediction for others.
    """

    def __init__(
        self, spec: ModelSpec, directory: Path, explainer: Explainer | None, forest: Forest,
        forms: Mapping[str, Form], plan: Plan,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.directory = directory
        self.plan = plan
        self.engine = spec.parameters["engine"]
        self._explainer = explainer
        self._num_features = forest.num_features
        self._num_sums = forest.base.size
        self._num_columns = spec.outputs[0].shape[-1]
        chosen = [forms[name] for name in plan.names]
        self._form_by_bits = (chosen[0], *chosen)

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores the input tensor, float32 [n, features]; raises InvalidInput naming what is wrong with it."""
        name = self.spec.inputs[0].name
        rows = inputs.get(name)
        if rows is None:
            raise InvalidInput(f"input {name} is missing; got {', '.join(inputs) or 'none'}", field=name)
        if rows.dtype != _FLOAT32:
            raise InvalidInput(f"{name} has element type {rows.dtype}; allowed float32", field=name)
        if rows.ndim != 2 or rows.shape[1] != self._num_features:
            raise InvalidInput(f"{name} has shape {list(rows.shape)}; allowed [n, {self._num_features}]", field=name)
        if not rows.flags.carray:  # the kernels are compiled for one layout: a view or read-only bytes are copied
            rows = np.array(rows, order="C")
        out = np.empty((len(rows), self._num_columns), _FLOAT32)
        self._form(len(rows))(rows, out)  # type: ignore[arg-type]
        return {self.spec.outputs[0].name: out}

    def score_into(self, rows: F32, out: F32) -> None:
        """Probability of class 1 (the prediction of a regressor) of `rows` [n, features] into `out` [n].

        Allocates nothing. Both are float32, C-contiguous and writeable; raises InvalidInput otherwise, Unsupported for
        a model of more than two classes.
        """
        num_rows = len(rows)
        if rows.dtype != _FLOAT32 or not rows.flags.carray or rows.shape != (num_rows, self._num_features):
            shape = list(rows.shape)
            raise InvalidInput(f"rows are {rows.dtype} {shape}; allowed C-contiguous float32 [n, {self._num_features}]")
        if out.dtype != _FLOAT32 or not out.flags.carray or out.shape != (num_rows,):
            raise InvalidInput(f"out is {out.dtype} {list(out.shape)}; allowed C-contiguous float32 [{num_rows}]")
        if self._num_sums > 2:
            raise Unsupported(f"one score per row of a model with {self._num_sums} classes; allowed 1 or 2")
        self._form(num_rows)(rows, out[:, None])

    def contributions(self, rows: F32) -> F32:
        """Exact SHAP values of `rows` [n, features] on the sum before the sigmoid: [n, features + 1], the base last.

        `rows` are C-contiguous float32; raises Unsupported for other models than XGBoost's and LightGBM's of one
        output.
        """
        if self._explainer is None:
            raise Unsupported(f"SHAP values of {self.spec.name}; allowed for XGBoost and LightGBM models of one output")
        return self._explainer.contributions(rows)

    def close(self) -> None:
        """Ends the model: calls that run finish, later ones raise NotReady."""
        self._form_by_bits = ()

    def _form(self, num_rows: int) -> Form:
        try:
            return self._form_by_bits[min(num_rows.bit_length(), len(SIZES))]
        except IndexError:
            raise NotReady(f"model {self.spec.name} version {self.spec.version} is closed") from None


def load_trees(
    folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress, *, cache: ArtefactCache
) -> TreeModel:
    """Loads the version in `folder`; raises ModelLoadError naming the file and why, Unsupported naming what is not.

    The parameter `model_type` says what the file is (`xgboost_json` without it), as for Triton's FIL backend.
    """
    model_type = spec.parameters.get("model_type", "xgboost_json")
    if model_type not in FILE_NAMES:
        raise Unsupported(f"model_type is {model_type}; allowed {', '.join(FILE_NAMES)}")
    if spec.parameters.get("output_class") == "true" and spec.parameters.get("predict_proba") != "true":
        raise Unsupported("output_class without predict_proba; allowed predict_proba true: answers are probabilities")
    model_file = folder / (config.default_model_filename or FILE_NAMES[model_type])
    if not model_file.is_file():
        raise ModelLoadError(f"{model_file} is missing; it should hold the model as {model_type}")
    imported, sources, explainer = _imported(model_file, model_type, spec.name, cache, progress)
    spec = _completed(replace(spec, parameters={**spec.parameters, "model_type": model_type}), imported)
    scratch = make_scratch(imported.forest)
    forms = numba_forms(imported, scratch)
    try:
        library = _library(model_file, spec.name, imported, sources, cache, progress)
        forms["compiled"] = compiled_form(imported, library, scratch)
    except DependencyFailed as error:
        progress(f"{spec.name} is served by the Numba kernels alone: {error.message}")
    plan = measure(forms, probe_rows(imported.forest, SIZES[-1], 0.02), spec.outputs[0].shape[-1], time.thread_time_ns)
    model = TreeModel(_described(spec, forms, plan), folder, explainer, imported.forest, forms, plan)
    progress(f"{spec.name}: {model.engine}; {model.spec.parameters['forms']}")
    return model


def _imported(
    model_file: Path, model_type: str, name: str, cache: ArtefactCache, progress: Progress
) -> tuple[ImportedTrees, Path, Explainer | None]:
    """The rewritten trees, the folder of their C sources, and what explains them; from the cache if it can be used."""

    def build(folder: Path) -> None:
        import_model(model_file, model_type, folder)

    libraries = (version("treelite"), version("tl2cgen"))
    key = artefact_key(model_file, "import", IMPORT_REVISION, model_type, *libraries)
    try:
        folder = cache.get_or_build(key, f"{name}-import", build, progress)
        return read_forest(folder), folder / "sources", read_explainer(folder)
    except DependencyFailed as error:
        progress(f"{name} is imported without the cache: {error.message}")
    with tempfile.TemporaryDirectory(prefix="headroom-") as temporary:
        build(Path(temporary))
        return read_forest(Path(temporary)), Path(temporary) / "sources", read_explainer(Path(temporary))


def _library(
    model_file: Path, name: str, imported: ImportedTrees, sources: Path, cache: ArtefactCache, progress: Progress
) -> TreeLibrary:
    """The trees as machine code, opened and compared with the kernels; raises DependencyFailed saying why not."""
    compiler = find_compiler()
    if imported.why_no_sources or compiler is None:
        raise DependencyFailed(imported.why_no_sources or "there is no C compiler; allowed gcc, cc or clang in PATH")

    def build(folder: Path) -> None:
        build_library(sources, folder, compiler, lambda line: progress(f"{name}: {line}"))

    key = artefact_key(model_file, "library", sources.parent.name, compiler.version, *FLAGS, cpu_features())
    library = open_library(cache.get_or_build(key, f"{name}-library", build, progress))
    shape, expected = (
        (library.num_features, library.num_sums),
        (imported.forest.num_features, imported.forest.base.size),
    )
    if shape != expected or library.entry_bytes != imported.forest.base.itemsize:
        raise DependencyFailed(f"the compiled trees take and give {shape}; expected {expected}")
    rows = probe_rows(imported.forest, 2 * SIZES[-1], 0.1)
    if wrong := num_disagreeing(imported, library, rows):
        raise DependencyFailed(f"the compiled trees disagree with the kernels on {wrong} of {len(rows)} rows")
    return library


def _completed(spec: ModelSpec, imported: ImportedTrees) -> ModelSpec:
    """The specification with the tensors the configuration left out; raises ModelLoadError where it contradicts."""
    batch = () if spec.max_batch_size > 0 else (-1,)
    num_features, num_columns = imported.forest.num_features, imported.num_columns
    inputs = spec.inputs or (TensorSpec(INPUT, "FP32", (*batch, num_features)),)
    outputs = spec.outputs or (TensorSpec(OUTPUT, "FP32", (*batch, num_columns)),)
    allowed_columns = (2, 1) if num_columns == 2 else (num_columns,)
    for what, tensors, allowed in (("input", inputs, (num_features,)), ("output", outputs, allowed_columns)):
        found = [(tensor.datatype, tensor.shape) for tensor in tensors]
        if found not in [[("FP32", (*batch, size))] for size in allowed]:
            dims = " or ".join(str([*batch, size]) for size in allowed)
            raise ModelLoadError(f"config.pbtxt says {what} {found}; the model needs one FP32 {what} of dims {dims}")
    return replace(spec, inputs=inputs, outputs=outputs)


def _described(spec: ModelSpec, forms: Mapping[str, Form], plan: Plan) -> ModelSpec:
    """The specification with what was found out about running it."""
    chosen = ", ".join(f"{name} from {rows}" for rows, name in plan.crossovers())
    measured = "; ".join(f"{name} {' '.join(f'{cost:.1f}' for cost in plan.cost_us[name])}" for name in forms)
    engine = "treelite+numba" if "compiled" in forms else "numba"
    return replace(spec, parameters={**spec.parameters, "engine": engine, "forms": chosen, "forms_us": measured})
