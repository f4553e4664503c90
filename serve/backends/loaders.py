"""Which backend loads which model: Triton's backend names to this server's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from serve.backends.base import Ask, Model
from serve.backends.ensemble import Describe, load_ensemble
from serve.backends.onnx import load_onnx
from serve.backends.python import load_python
from serve.backends.stacked import load_stacked
from serve.backends.trees import load_trees
from serve.repository.cache import ArtefactCache
from serve.repository.loading import Loader

MAX_CACHE_BYTES = 8 << 30


def model_loaders(cache_dir: Path, ask: Ask, describe: Describe) -> Mapping[str, Loader]:
    """The loaders by `backend` of config.pbtxt; what they derive from model files is kept under `cache_dir`. By `ask` a
    model has another one infer; `describe` says what that is.
    """
    cache = ArtefactCache(cache_dir / "models", MAX_CACHE_BYTES)
    trees: Callable[..., Model] = partial(load_trees, cache=cache)
    stacked: Callable[..., Model] = partial(load_stacked, cache=cache)
    python: Callable[..., Model] = partial(load_python, ask=ask)
    ensemble: Callable[..., Model] = partial(load_ensemble, ask=ask, describe=describe)
    return {"ensemble": ensemble, "fil": trees, "onnxruntime": load_onnx, "python": python, "stacked": stacked}
