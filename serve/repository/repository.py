"""The models that serve: which versions of which model are ready, and why the others are not.

A folder in Triton's layout and one loader per backend enter; loaded `Model`s and their states leave. Called by the
ingress at start (`load_all`) and for every load or unload.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import Model, ModelSpec, Tensor
from serve.errors import HeadroomError, InvalidInput, NotFound, NotReady
from serve.repository.config import is_model_folder, parts_of
from serve.repository.loading import LoadedModel, Loader, Progress, close_model, load_model

_MAX_NAME_LENGTH = 255
_MAX_VERSION_DIGITS = 18


@dataclass(frozen=True, slots=True)
class ModelState:
    """One row of the repository's index. `version` is empty for a model without any, `state` too for one that was never
    loaded; `reason` may stand beside READY too, when a later load failed and this version went on serving.
    """

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING", ""]
    reason: str


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load or unload did. `reason` is empty when everything asked for is ready; `retired` instances get no new
    requests: the caller closes them when the last batch that uses them has ended.
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
        self._busy: Mapping[str, Literal["LOADING", "UNLOADING"]] = {}
        self._load_lock = threading.Lock()
        self._num_asks: Counter[int] = Counter()
        self._asks_changed = threading.Condition()
        self.on_asked: Callable[[ModelSpec, int, int], None] = lambda spec, rows, took_ns: None
        """Told of every request of one model to another: to whom, of how many rows, and how long it took."""

    def names(self) -> list[str]:
        """Every model of the folder. Raises InvalidInput when there is no such folder."""
        if not self._root.is_dir():
            raise InvalidInput(f"model repository is {str(self._root)!r}; allowed a folder that exists")
        return sorted(path.name for path in self._root.iterdir() if self._is_model(path.name))

    def folder(self, name: str) -> Path:
        """Where a model is."""
        return self._root / name

    def load_all(self, progress: Progress, only: Collection[str] | None = None) -> None:
        """Loads every model of the folder, or those named. One that fails keeps its reason and never stops the others.

        Raises InvalidInput when there is no such folder, or no such model in it.
        """
        there = self.names()
        if only is not None and (missing := sorted(set(only) - set(there))):
            raise InvalidInput(f"model repository has no model {missing[0][:128]!r}; allowed: {', '.join(there)}")
        names = [name for name in self.with_parts(there if only is None else sorted(only)) if name in there]
        for index, name in enumerate(names, start=1):
            progress(f"loading model {index} of {len(names)}: {name}")
            self.load(name, progress=progress)

    def parts_of(self, name: str) -> list[str]:
        """Models that an ensemble is made of; none for other models."""
        return parts_of(self._root / name) if self._is_model(name) else []

    def with_parts(self, names: Iterable[str]) -> list[str]:
        """These models and all that they are made of, each once and after its parts."""
        found: dict[str, None] = {}
        under_way: set[str] = set()

        def visit(name: str) -> None:
            if name in under_way:  # it has been visited, or is made of itself, which its load will say
                return
            under_way.add(name)
            for part in self.parts_of(name):
                visit(part)
            found[name] = None

        for name in names:
            visit(name)
        return list(found)

    def load(self, name: str, config: ModelConfig | None = None, progress: Progress = lambda line: None) -> LoadResult:
        """Loads a model from its folder beside the instances that serve, and swaps only when all of it succeeded; what
        serves is otherwise left as it is. Where nothing serves, an older version stands in for one that fails. `config`
        takes the place of the folder's.

        Raises NotFound for a name that is no model of the folder; a failed load is a result, not an error.
        """
        if not self._is_model(name):
            raise NotFound(f"failed to load {name[:128]!r}: the repository has no such model")
        with self._load_lock, self._being(name, "LOADING"):
            serving = self._models.get(name, LoadedModel())
            is_serving = bool(serving.versions)
            loaded = load_model(self._root, name, self._loaders, progress, config=config, stops_at_failure=is_serving)
            problem = loaded.problem()
            if problem and is_serving:
                for model in loaded.versions.values():
                    close_model(model)
                self._put(name, replace(serving, reasons=loaded.reasons, reason=loaded.reason))
                return LoadResult(name, problem, retired=())
            self._put(name, loaded)
            return LoadResult(name, problem, retired=tuple(serving.versions.values()))

    def unload(self, name: str) -> LoadResult:
        """Takes a model out of service. Raises NotFound for one that was never loaded."""
        with self._load_lock, self._being(name, "UNLOADING"):
            serving = self._loaded(name)
            reasons = dict.fromkeys(serving.versions, "unloaded")
            self._put(name, LoadedModel(serving.config, serving.labels, reasons=reasons, reason="unloaded"))
            return LoadResult(name, "", retired=tuple(serving.versions.values()))

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

    def ask(self, name: str, version: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Has a model infer for another one. Raises HeadroomError."""
        model = self.model(name, version)
        spec = model.spec
        wanted = {tensor.name for tensor in spec.inputs if not tensor.is_optional}
        if missing := sorted(wanted - inputs.keys()):
            raise InvalidInput(f"model '{name}' lacks input '{missing[0]}'; got {', '.join(inputs) or 'none'}")
        began_ns = time.monotonic_ns()
        with self._asking(model):
            outputs = model.infer(inputs)
        rows = len(next(iter(inputs.values()), ())) if spec.max_batch_size else 1
        self.on_asked(spec, rows, time.monotonic_ns() - began_ns)
        return outputs

    def wait_until_unasked(self, model: Model, timeout_s: float) -> None:
        """Until no other model asks it any more; for one that new requests do not find."""
        with self._asks_changed:
            self._asks_changed.wait_for(lambda: not self._num_asks[id(model)], timeout_s)

    @contextmanager
    def _asking(self, model: Model) -> Iterator[None]:
        with self._asks_changed:
            self._num_asks[id(model)] += 1
        try:
            yield
        finally:
            with self._asks_changed:
                self._num_asks[id(model)] -= 1
                if not self._num_asks[id(model)]:
                    del self._num_asks[id(model)]
                    self._asks_changed.notify_all()

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

    def loaded(self, name: str) -> Mapping[int, Model]:
        """The ready versions of a model; none where there is no such model."""
        return self._models.get(name, LoadedModel()).versions

    def ready(self) -> list[tuple[str, str]]:
        """Name and version of everything that serves."""
        return [
            (name, str(number)) for name, loaded in sorted(self._models.items()) for number in sorted(loaded.versions)
        ]

    def states(self) -> list[ModelState]:
        """Every model and version the repository knows, by name and version, with the reason of what failed; and what
        else is in its folder, which is looked at: not for a listener's own thread.
        """
        models, busy = self._models, self._busy
        try:
            never_loaded = {name: LoadedModel() for name in self.names() if name not in models}
        except (HeadroomError, OSError):
            never_loaded = {}
        known = sorted({**never_loaded, **models}.items())
        return [state for name, loaded in known for state in _states(name, loaded, busy.get(name))]

    def close(self) -> None:
        """Closes every loaded model; no request may be running."""
        with self._load_lock:
            models, self._models = self._models, {}
        for loaded in models.values():
            for model in loaded.versions.values():
                close_model(model)

    @contextmanager
    def _being(self, name: str, state: Literal["LOADING", "UNLOADING"]) -> Iterator[None]:
        self._busy = {name: state}
        try:
            yield
        finally:
            self._busy = {}

    def _put(self, name: str, loaded: LoadedModel) -> None:
        self._models = {**self._models, name: loaded}

    def _loaded(self, name: str) -> LoadedModel:
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"Request for unknown model: {name[:128]!r} is not found") from None

    def _is_model(self, name: str) -> bool:
        is_plain = 0 < len(name) <= _MAX_NAME_LENGTH and name.isprintable() and not {"/", "\\"} & set(name)
        return is_plain and not name.startswith(".") and is_model_folder(self._root / name)


def _not_available(name: str, loaded: LoadedModel) -> NotReady:
    return NotReady(f"Request for unknown model: '{name}' has no available versions: {loaded.problem()}")


def _version_number(version: str) -> int:
    if not (version.isascii() and version.isdigit() and len(version) <= _MAX_VERSION_DIGITS):
        raise InvalidInput(f"model version is {version[:64]!r}; allowed a whole number of 1 and up", field="version")
    return int(version)


def _states(name: str, loaded: LoadedModel, busy: Literal["LOADING", "UNLOADING"] | None) -> Iterator[ModelState]:
    known = sorted({*loaded.versions, *loaded.reasons})
    if not known:
        yield ModelState(name, "", busy or ("UNAVAILABLE" if loaded.reason else ""), loaded.reason)
    for version in known:
        is_ready = version in loaded.versions and busy != "UNLOADING"
        reason = "" if busy and not is_ready else loaded.reasons.get(version, loaded.reason)
        yield ModelState(name, str(version), "READY" if is_ready else busy or "UNAVAILABLE", reason)
