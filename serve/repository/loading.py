"""Loads one model from its folder: configuration, labels, and the versions its policy asks for.

A folder and the loaders enter; the loaded versions, and the reason of every failure, leave. Nothing is raised and
nothing is shared: the repository decides what becomes of the result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import Model, ModelSpec
from serve.errors import HeadroomError, InvalidInput
from serve.repository.config import fill_in, read_config, read_labels, spec_of, version_numbers, version_plan
from serve.repository.warm_up import warm_up_requests

Progress = Callable[[str], None]
Loader = Callable[[Path, ModelConfig, ModelSpec, Progress], Model]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model's ready versions, and why a version or the whole model could not be loaded."""

    config: ModelConfig | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions: Mapping[int, Model] = field(default_factory=dict)
    reasons: Mapping[int, str] = field(default_factory=dict)
    reason: str = ""

    def problem(self) -> str:
        """Everything that is wrong, newest version first; empty when nothing is."""
        by_version = [f"version {version}: {self.reasons[version]}" for version in sorted(self.reasons, reverse=True)]
        return "; ".join(filter(None, [self.reason, *by_version]))


def load_model(
    root: Path,
    name: str,
    loaders: Mapping[str, Loader],
    progress: Progress,
    *,
    config: ModelConfig | None = None,
    stops_at_failure: bool,
) -> LoadedModel:
    """Loads versions until as many are ready as the policy wants: an older one stands in for one that fails, unless
    `stops_at_failure`. `config` takes the place of the folder's. Folders that lead out of `root` are refused.
    """
    try:
        model_dir = root / name
        _check_inside(root, model_dir)
        config = config or read_config(model_dir)
        labels = read_labels(config, model_dir)
        loader = _loader(config, loaders)
        plan = version_plan(config, version_numbers(model_dir))
    except (HeadroomError, OSError) as error:
        progress(f"{name} not loaded: {_reason(error)}")
        return LoadedModel(reason=_reason(error))
    if not plan.order:
        return LoadedModel(config, labels, reason="there is no version to load; allowed folders named 1, 2, …")
    versions: dict[int, Model] = {}
    reasons: dict[int, str] = {}
    for number in plan.order:
        if len(versions) == plan.num_wanted or (reasons and stops_at_failure):
            break
        try:
            versions[number] = _load_version(root, model_dir / str(number), config, loader, progress)
        except Exception as error:  # whatever a model file does to its library must not reach the other models
            _log.exception("model %s version %d was not loaded", name, number)
            reasons[number] = _reason(error)
            progress(f"{name} version {number} not loaded: {reasons[number]}")
    if versions:
        fill_in(config, versions[max(versions)].spec)
    return LoadedModel(config, labels, versions, reasons)


def close_model(model: Model) -> None:
    """Closes a model; a failure is logged, for nobody could do anything about it."""
    try:
        model.close()
    except Exception:
        _log.exception("model %s version %s failed to close", model.spec.name, model.spec.version)


def _load_version(root: Path, folder: Path, config: ModelConfig, loader: Loader, progress: Progress) -> Model:
    if not folder.is_dir():
        raise InvalidInput(f"its folder {folder.name!r} is missing; the version policy asks for it")
    _check_inside(root, folder)
    started_ns = time.monotonic_ns()
    model = loader(folder, config, spec_of(config, folder.name), progress)
    if not (model.spec.inputs and model.spec.outputs):
        close_model(model)
        raise InvalidInput("it has no input or no output; config.pbtxt must name them, its backend cannot tell")
    try:
        for inputs in warm_up_requests(config, folder.parent):
            model.infer(inputs)
    except Exception:
        close_model(model)
        raise
    progress(f"{config.name} version {folder.name} ready in {(time.monotonic_ns() - started_ns) / 1e9:.1f} s")
    return model


def _loader(config: ModelConfig, loaders: Mapping[str, Loader]) -> Loader:
    if config.backend not in loaders:
        allowed = ", ".join(sorted(loaders))
        raise InvalidInput(f"backend is {config.backend!r}; allowed {allowed}", field="backend")
    return loaders[config.backend]


def _check_inside(root: Path, folder: Path) -> None:
    if not folder.resolve().is_relative_to(root):
        raise InvalidInput(f"folder {folder.name!r} leads out of the model repository; allowed links within it")


def _reason(error: Exception) -> str:
    if isinstance(error, HeadroomError):
        return error.message
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"[:512]
