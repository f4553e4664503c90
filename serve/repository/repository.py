"""The models that serve: which versions of which model are ready, and why the others are not.

A folder in Triton's layout and one loader per backend enter; loaded `Model`s and their states leave. Called by the
ingress at start (`load_all`), per request (`model`) and for every load or unload (`reload`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import Model
from serve.errors import HeadroomError, InvalidInput, NotFound, NotReady
from serve.repository.config import CONFIG_FILE
from serve.repository.loading import LoadedModel, Loader, Progress, close_model, load_model

_MAX_NAME_LENGTH = 255
_MAX_VERSION_DIGITS = 18


@dataclass(frozen=True, slots=True)
class ModelState:
    """One row of the repository's index. `version` is empty for a model without any; `reason` may stand beside READY
    too, when a later load failed and this version went on serving.
    """

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load did. `reason` is empty when everything asked for is ready; `retired` instances get no new requests:
    the caller closes them when the last batch that uses them has ended.
    """

    name: str
    reason: str
    retired: tuple[Model, ...]


class Repository:
    """The models of one folder. Any thread may read at any time and sees one consistent state without a lock, because
    a load replaces the whole table. Loads run one at a time.
    """

    def __init__(self, root: Path, loaders: Mapping[str, Loader]) -> None:
        self._root = root.resolve()
        self._loaders = loaders
        self._models: Mapping[str, LoadedModel] = {}
        self._load_lock = threading.Lock()

    def load_all(self, progress: Progress) -> None:
        """Loads every model of the folder. A model that fails keeps its reason and never stops the others.

        Raises InvalidInput when there is no such folder.
        """
        if not self._root.is_dir():
            raise InvalidInput(f"model repository is {str(self._root)!r}; allowed a folder that exists")
        names = sorted(path.name for path in self._root.iterdir() if self._is_model(path.name))
        for index, name in enumerate(names, start=1):
            progress(f"loading model {index} of {len(names)}: {name}")
            self.reload(name, progress)

    def reload(self, name: str, progress: Progress = lambda line: None) -> LoadResult:
        """Loads a model from its folder beside the instances that serve, and swaps only when all of it succeeded; what
        serves is otherwise left as it is. Where nothing serves, an older version stands in for one that fails.

        Raises NotFound for a name that is no model of the folder; a failed load is a result, not an error.
        """
        if not self._is_model(name):
            raise NotFound(f"failed to load {name[:128]!r}: the repository has no such model")
        with self._load_lock:
            serving = self._models.get(name, LoadedModel())
            is_serving = bool(serving.versions)
            loaded = load_model(self._root, name, self._loaders, progress, stops_at_failure=is_serving)
            problem = loaded.problem()
            if problem and is_serving:
                for model in loaded.versions.values():
                    close_model(model)
                self._put(name, replace(serving, reasons=loaded.reasons, reason=loaded.reason))
                return LoadResult(name, problem, retired=())
            self._put(name, loaded)
            return LoadResult(name, problem, retired=tuple(serving.versions.values()))

    def model(self, name: str, version: str = "") -> Model:
        """The model of that version, or of the newest ready one. Raises NotFound, NotReady with the reason, and
        InvalidInput for a version that is no number.
        """
        loaded = self._loaded(name)
        if not version and not loaded.versions:
            raise _not_available(name, loaded)
        number = _version_number(version) if version else max(loaded.versions)
        if number in loaded.versions:
            return loaded.versions[number]
        if number in loaded.reasons:
            raise NotReady(
                f"Request for unknown model: '{name}' version {number} is not at ready state: {loaded.reasons[number]}"
            )
        raise NotFound(f"Request for unknown model: '{name}' version {number} is not found")

    def config(self, name: str) -> ModelConfig:
        """The model's configuration as it was completed when read. Raises NotFound, and NotReady when it is broken."""
        loaded = self._loaded(name)
        if loaded.config is None:
            raise _not_available(name, loaded)
        return loaded.config

    def labels(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """Class labels by output name, for the classification extension. Raises NotFound."""
        return self._loaded(name).labels

    def versions(self, name: str) -> tuple[str, ...]:
        """The ready versions, oldest first. Raises NotFound."""
        return tuple(str(version) for version in sorted(self._loaded(name).versions))

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether `model` would give one. Raises nothing."""
        try:
            self.model(name, version)
        except HeadroomError:
            return False
        return True

    def states(self) -> list[ModelState]:
        """Every model and version the repository knows, by name and version, with the reason of what failed."""
        return [state for name, loaded in sorted(self._models.items()) for state in _states(name, loaded)]

    def close(self) -> None:
        """Closes every loaded model; no request may be running."""
        with self._load_lock:
            models, self._models = self._models, {}
        for loaded in models.values():
            for model in loaded.versions.values():
                close_model(model)

    def _put(self, name: str, loaded: LoadedModel) -> None:
        self._models = {**self._models, name: loaded}

    def _loaded(self, name: str) -> LoadedModel:
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"Request for unknown model: {name[:128]!r} is not found") from None

    def _is_model(self, name: str) -> bool:
        is_plain = 0 < len(name) <= _MAX_NAME_LENGTH and name.isprintable() and not {"/", "\\"} & set(name)
        return is_plain and not name.startswith(".") and (self._root / name / CONFIG_FILE).is_file()


def _not_available(name: str, loaded: LoadedModel) -> NotReady:
    return NotReady(f"Request for unknown model: '{name}' has no available versions: {loaded.problem()}")


def _version_number(version: str) -> int:
    if not (version.isascii() and version.isdigit() and len(version) <= _MAX_VERSION_DIGITS):
        raise InvalidInput(f"model version is {version[:64]!r}; allowed a whole number of 1 and up", field="version")
    return int(version)


def _states(name: str, loaded: LoadedModel) -> Iterator[ModelState]:
    known = sorted({*loaded.versions, *loaded.reasons})
    if not known:
        yield ModelState(name, "", "UNAVAILABLE", loaded.reason)
    for version in known:
        state: Literal["READY", "UNAVAILABLE"] = "READY" if version in loaded.versions else "UNAVAILABLE"
        yield ModelState(name, str(version), state, loaded.reasons.get(version, loaded.reason))
