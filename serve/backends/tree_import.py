"""Reads a tree model's file and rewrites it for the kernels, in a process of its own.

Enters: a model file. Leaves, in a folder: `forest.npz`, read back as `ImportedTrees`, and `sources`, the trees as C.
Called by `serve.backends.trees` on a cache miss. A child process, because Treelite's parsers, which are C++, crash,
hang or ask for all memory on some damaged files; here that costs one failed load.

As a program: `python -m serve.backends.tree_import MODEL_FILE MODEL_TYPE FOLDER`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.forest import Forest, MalformedForest, RawTree, Real, build_forest
from serve.backends.tree_shap import EXPLAINED_TYPES, write_tables
from serve.errors import ModelLoadError, Unsupported

IMPORT_REVISION = "3"
"""Part of the cache key: raise it when what is written here changes."""

FILE_NAMES = {
    "xgboost_json": "xgboost.json",
    "xgboost_ubj": "xgboost.ubj",
    "lightgbm": "model.txt",
    "treelite_checkpoint": "checkpoint.tl",
}
"""The model types that are read and, as in Triton's FIL backend, the file each is looked for in."""

MAX_COMPILED_NODES = 200_000
"""Larger models are not compiled: it takes minutes, and code of many megabytes runs from memory, not from cache."""

_NODES_PER_FILE = 3_000
_MAX_FEATURES = 100_000
_TIMEOUT_S = 60
_MEMORY_BYTES = 8 << 30
_REFUSED, _NOT_OFFERED = 65, 69
_BINARY_CLASSIFIER_TASK = 0
_ANSWER_FIELDS = ("postprocessor", "alpha", "num_columns", "why_no_sources")
_LEAF_TYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class ImportedTrees:
    """A forest, and how its sums become answers: Treelite's post-processor with its parameter, answers per row.

    `why_no_sources` is empty when the trees were also written as C.
    """

    forest: Forest
    postprocessor: str
    alpha: float
    num_columns: int
    why_no_sources: str = ""


def import_model(model_file: Path, model_type: str, folder: Path) -> None:
    """Fills `folder` from the model file; raises ModelLoadError or Unsupported naming the file and why."""
    command = [sys.executable, "-m", __name__, str(model_file), model_type, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadError(f"{model_file} could not be read: no end after {_TIMEOUT_S} s; is it damaged?") from None
    if child.returncode == 0:
        return
    if child.returncode < 0:
        raise ModelLoadError(f"{model_file} could not be read: it crashed the parser (signal {-child.returncode})")
    reason = child.stderr.strip().rsplit("\n", 1)[-1]
    if child.returncode == _NOT_OFFERED:
        raise Unsupported(f"{model_file}: {reason}")
    raise ModelLoadError(f"{model_file} could not be read as {model_type}: {reason}")


def read_forest(folder: Path) -> ImportedTrees:
    """What `import_model` wrote as `forest.npz`."""
    with np.load(folder / "forest.npz", allow_pickle=False) as file:
        settings = json.loads(file["settings"].tobytes())
        arrays = {name: file[name] for name in file.files if name != "settings"}
    return ImportedTrees(Forest(**arrays, **settings["forest"]), **settings["answers"])


def main(arguments: list[str]) -> int:
    """The child's side; the last line on stderr is the reason of a failure."""
    model_file, model_type, folder = arguments
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        import_here(Path(model_file), model_type, Path(folder))
    except Unsupported as error:
        return _fail(_NOT_OFFERED, error.message)
    except Exception as error:
        return _fail(_REFUSED, _reason(error))
    return 0


def import_here(model_file: Path, model_type: str, folder: Path) -> None:
    """`import_model` within this process; raises what the libraries raise, and may crash on a damaged file."""
    model = load_treelite(model_file, model_type)
    imported = imported_trees(model)
    why_no_sources = _write_sources(model, imported.forest, folder / "sources")
    _write_forest(dataclasses.replace(imported, why_no_sources=why_no_sources), folder)
    if model_type in EXPLAINED_TYPES:
        header = model.get_header_accessor()
        trees = [raw_tree(model.get_tree_accessor(index), header) for index in range(model.num_tree)]
        write_tables(model, model_type, trees, folder)


def load_treelite(model_file: Path, model_type: str) -> Any:
    """The file as a `treelite.Model`; raises ValueError, OSError or Treelite's error. May crash on a damaged file."""
    if model_file.stat().st_size == 0:
        raise ValueError("the file is empty")
    import treelite

    if model_type == "xgboost_json":
        return treelite.frontend.load_xgboost_model(model_file, format_choice="json")
    if model_type == "xgboost_ubj":
        return treelite.frontend.load_xgboost_model(model_file, format_choice="ubjson")
    if model_type == "lightgbm":
        if b"\nend of trees" not in model_file.read_bytes():  # the parser takes what is there for the whole
            raise ValueError('the line "end of trees" is missing; the file was cut short')
        return treelite.frontend.load_lightgbm_model(model_file)
    if model_type == "treelite_checkpoint":
        return treelite.Model.deserialize(model_file)
    raise Unsupported(f"model type {model_type}; allowed {', '.join(FILE_NAMES)}")


def imported_trees(model: Any) -> ImportedTrees:
    """A `treelite.Model` for the kernels; raises MalformedForest, or Unsupported naming what is not offered."""
    header = model.get_header_accessor()
    field = header.get_field
    if model.output_type not in _LEAF_TYPES:
        raise Unsupported(f"trees with {model.output_type} leaves; allowed {' or '.join(_LEAF_TYPES)}")
    if field("num_target")[0] != 1:
        raise Unsupported(f"a model with {field('num_target')[0]} targets; allowed 1")
    if not 1 <= model.num_feature <= _MAX_FEATURES:
        raise Unsupported(f"a model of {model.num_feature} features; allowed 1 to {_MAX_FEATURES}")
    raw = [raw_tree(model.get_tree_accessor(index), header) for index in range(model.num_tree)]
    if not raw:
        raise MalformedForest("the model has no trees")
    columns = np.maximum(field("class_id"), 0).astype(np.uint32)
    num_sums = int(field("num_class")[0])
    if columns.size != len(raw) or (columns + np.uint32(raw[0].leaf.shape[1])).max() > num_sums:
        raise MalformedForest(f"the trees add to outputs outside 0 to {num_sums - 1}")
    raw = _averaged(raw, columns, num_sums) if field("average_tree_output")[0] else raw
    base = field("base_scores").astype(raw[0].leaf.dtype)
    if base.size != num_sums:
        raise MalformedForest(f"{base.size} base scores for {num_sums} outputs")
    postprocessor, alpha = _postprocessor(header)
    is_probability = postprocessor == "sigmoid" and field("task_type")[0] == _BINARY_CLASSIFIER_TASK
    forest = build_forest(raw, columns, base, model.num_feature)
    return ImportedTrees(forest, postprocessor, alpha, 2 if num_sums == 1 and is_probability else num_sums)


def raw_tree(accessor: Any, header: Any) -> RawTree:
    """One tree's fields, its leaves as [nodes, width]."""
    fields = {name.name: accessor.get_field(name.name) for name in dataclasses.fields(RawTree) if name.name != "leaf"}
    return RawTree(leaf=_leaves(accessor, int(np.prod(header.get_field("leaf_vector_shape")))), **fields)


def _leaves(accessor: Any, width: int) -> Real:
    values = accessor.get_field("leaf_value")
    if width == 1:
        return np.asarray(values[:, None])
    vector, begin = accessor.get_field("leaf_vector"), accessor.get_field("leaf_vector_begin").astype(np.int64)
    length = accessor.get_field("leaf_vector_end").astype(np.int64) - begin
    if not np.isin(length, (0, width)).all() or (begin + length).max() > vector.size or begin.min() < 0:
        raise MalformedForest(f"leaf vectors are not all {width} long")
    leaves = np.zeros((values.size, width), vector.dtype)
    holds = length == width
    leaves[holds] = vector[begin[holds, None] + np.arange(width)]
    return leaves


def _averaged(raw: list[RawTree], columns: Any, num_sums: int) -> list[RawTree]:
    """The trees with leaves divided by how many trees add to their output, so that sums are averages."""
    width = raw[0].leaf.shape[1]
    counts = np.bincount((columns[:, None] + np.arange(width)).ravel(), minlength=num_sums)
    return [
        dataclasses.replace(tree, leaf=tree.leaf / counts[column : column + width].astype(tree.leaf.dtype))
        for tree, column in zip(raw, columns, strict=True)
    ]


def _postprocessor(header: Any) -> tuple[str, float]:
    """(the kernels' name for Treelite's post-processor, its parameter)."""
    name = header.get_field("postprocessor")
    alpha, ratio = float(header.get_field("sigmoid_alpha")[0]), float(header.get_field("ratio_c")[0])
    offered = {
        "identity": ("identity", 1.0),
        "identity_multiclass": ("identity", 1.0),
        "sigmoid": ("sigmoid", alpha),
        "multiclass_ova": ("sigmoid", alpha),
        "softmax": ("softmax", 1.0),
        "exponential": ("exponential", 1.0),
        "exponential_standard_ratio": ("exponential_standard_ratio", ratio),
    }
    if name not in offered:
        raise Unsupported(f"the post-processor {name}; allowed {', '.join(offered)}")
    return offered[name]


def _write_forest(imported: ImportedTrees, folder: Path) -> None:
    fields = {field.name: getattr(imported.forest, field.name) for field in dataclasses.fields(Forest)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    settings = {
        "forest": {name: value for name, value in fields.items() if name not in arrays},
        "answers": {name: getattr(imported, name) for name in _ANSWER_FIELDS},
    }
    text = np.frombuffer(json.dumps(settings).encode(), np.uint8)
    np.savez(folder / "forest.npz", allow_pickle=False, settings=text, **arrays)


def _write_sources(model: Any, forest: Forest, folder: Path) -> str:
    """Writes the trees as C; returns why not where that is not possible."""
    import tl2cgen

    num_nodes = forest.child.size
    if num_nodes > MAX_COMPILED_NODES:
        return f"it has {num_nodes} nodes; allowed to compile {MAX_COMPILED_NODES}"
    num_files = max(1, min(model.num_tree, num_nodes // _NODES_PER_FILE))
    try:
        tl2cgen.generate_c_code(model, dirpath=folder, params={"parallel_comp": num_files})
    except tl2cgen.TL2cgenError as error:
        return f"TL2cgen cannot write it as C: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    """One line of an exception; Treelite's begin with a time and a place in its sources."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[[\d:]+\] \S+?:\d+: (Error: )?", "", lines[0])


def _fail(code: int, reason: str) -> int:
    print(reason, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
