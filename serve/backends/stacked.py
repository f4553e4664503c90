"""The `stacked` backend: an ensemble whose members score every row, and a logistic regression on their log-odds.

Enters: a version's folder with `stacked.json` and the members' files beside it, so that a version is one thing. Leaves:
a `StackedModel`. Called by the model repository; flows and the protocol's `infer` call the model.

A member is a tree model of a type the `fil` backend reads, or a `network`. Members that can say what moved them are
XGBoost's and LightGBM's trees; what the others add to the log-odds is left unexplained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig

from kernels.forest import F32
from kernels.stacking import fill, stack
from serve.backends.base import ModelSpec, Scores, Tensor, TensorSpec
from serve.backends.network import read_network
from serve.backends.tree_import import FILE_NAMES
from serve.backends.tree_shap import EXPLAINED_TYPES
from serve.backends.trees import INPUT, OUTPUT, TreeModel, load_trees
from serve.errors import InvalidInput, ModelLoadError
from serve.repository.cache import ArtefactCache

Progress = Callable[[str], None]

ENSEMBLE_FILE = "stacked.json"
MEMBERS = "members__0"
NETWORK = "network"
_MAX_MEMBERS = 64
_Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9_]{1,64}$")]
_FileName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]


class MemberFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member. `needs_values`: it was trained on rows in which `fill` stood for what was missing."""

    name: _Name
    type: str
    file: _FileName
    weight: float
    mean_log_odds: float
    """Over the training rows: what it adds where nothing is known."""
    needs_values: bool = False


class EnsembleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stacked.json`."""

    members: Annotated[list[MemberFile], msgspec.Meta(min_length=1, max_length=_MAX_MEMBERS)]
    bias: float
    fill: list[float]


class _Scorer(Protocol):
    def score_into(self, rows: F32, out: F32) -> None: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A loaded member and its part in the ensemble."""

    about: MemberFile
    model: _Scorer


class StackedModel:
    """A loaded ensemble. Thread-safe, as its members are."""

    def __init__(self, spec: ModelSpec, directory: Path, ensemble: EnsembleFile, members: Sequence[Member]) -> None:
        self.spec = spec
        self.directory = directory
        self.member_names = tuple(member.about.name for member in members)
        self._members = tuple(members)
        self._num_features = len(ensemble.fill)
        self._fill = np.array(ensemble.fill, np.float32)
        self._weights = np.array([member.about.weight for member in members])
        self._bias = ensemble.bias
        self._needs_fill = any(member.about.needs_values for member in members)
        self._explained = [m for m in members if m.about.type in EXPLAINED_TYPES and isinstance(m.model, TreeModel)]
        self._expected = ensemble.bias + sum(
            member.about.weight * member.about.mean_log_odds for member in members if member not in self._explained
        )

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores the input tensor, float32 [n, features]; raises InvalidInput naming what is wrong with it."""
        rows = inputs.get(INPUT)
        if rows is None:
            raise InvalidInput(f"input {INPUT} is missing; got {', '.join(inputs) or 'none'}", field=INPUT)
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != self._num_features:
            raise InvalidInput(
                f"{INPUT} is {rows.dtype} {list(rows.shape)}; allowed float32 [n, {self._num_features}]", field=INPUT
            )
        scores = self.score(np.array(rows, np.float32, order="C"))
        probability = scores.probability
        return {OUTPUT: np.stack([1 - probability, probability], axis=1), MEMBERS: scores.members}

    def score(self, rows: F32) -> Scores:
        """Scores `rows`, float32 [n, features], C-contiguous and writeable; NaN is a missing value."""
        n = len(rows)
        filled = self._filled(rows) if self._needs_fill else rows
        scores = np.empty((len(self._members), n), np.float32)
        for member, out in zip(self._members, scores, strict=True):
            member.model.score_into(filled if member.about.needs_values else rows, out)
        members = np.ascontiguousarray(scores.T)
        log_odds, probability = np.empty(n), np.empty(n, np.float32)
        stack(members, self._weights, self._bias, log_odds, probability)
        return Scores(probability, log_odds, members)

    def contributions(self, rows: F32) -> F32:
        """What moved the log-odds of `rows` [n, features], as far as its trees can say: [n, features + 1].

        Exact SHAP values of the members that have them, times their weights; the last column is the ensemble's log-odds
        where nothing is known. What a row's sum lacks of its log-odds is the other members' part.
        """
        total = np.zeros((len(rows), self._num_features + 1), np.float32)
        for member in self._explained:
            assert isinstance(member.model, TreeModel)
            total += np.float32(member.about.weight) * member.model.contributions(rows)
        total[:, -1] += np.float32(self._expected)
        return total

    def close(self) -> None:
        """Ends the model: calls that run finish, later ones raise NotReady."""
        for member in self._members:
            if isinstance(member.model, TreeModel):
                member.model.close()

    def _filled(self, rows: F32) -> F32:
        out = np.empty_like(rows)
        fill(rows, self._fill, out)
        return out


def load_stacked(
    folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress, *, cache: ArtefactCache
) -> StackedModel:
    """Loads the version in `folder`; raises ModelLoadError naming the file and why, Unsupported naming what is not."""
    ensemble = _read(folder / (config.default_model_filename or ENSEMBLE_FILE))
    num_features = len(ensemble.fill)
    members = [_load_member(folder, about, num_features, spec, progress, cache) for about in ensemble.members]
    return StackedModel(_completed(spec, num_features, ensemble, members), folder, ensemble, members)


def _read(path: Path) -> EnsembleFile:
    try:
        ensemble = msgspec.json.decode(path.read_bytes(), type=EnsembleFile)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from None
    names = [member.name for member in ensemble.members]
    if len(set(names)) < len(names):
        raise ModelLoadError(f"{path} names members {names}; allowed: each name once")
    numbers = [ensemble.bias, *ensemble.fill, *(x for m in ensemble.members for x in (m.weight, m.mean_log_odds))]
    if not np.isfinite(numbers).all():
        raise ModelLoadError(f"{path} has a number that is not finite")
    allowed = (*FILE_NAMES, NETWORK)
    for member in ensemble.members:
        if member.type not in allowed:
            raise ModelLoadError(f"{path}: member {member.name} is a {member.type}; allowed {', '.join(allowed)}")
    return ensemble


def _load_member(
    folder: Path, about: MemberFile, num_features: int, spec: ModelSpec, progress: Progress, cache: ArtefactCache
) -> Member:
    if about.type == NETWORK:
        network = read_network(folder / about.file)
        found = network.num_features
        model: _Scorer = network
    else:
        config = ModelConfig(name=f"{spec.name}-{about.name}", default_model_filename=about.file)
        of_member = ModelSpec(
            config.name, spec.version, "fil", "fil", spec.max_batch_size, (), (), {"model_type": about.type}
        )
        trees = load_trees(folder, config, of_member, progress, cache=cache)
        found = trees.spec.inputs[0].shape[-1]
        model = trees
    if found != num_features:
        raise ModelLoadError(f"{folder / about.file} takes {found} features; allowed {num_features}, as `fill` has")
    return Member(about, model)


def _completed(spec: ModelSpec, num_features: int, ensemble: EnsembleFile, members: Sequence[Member]) -> ModelSpec:
    """The specification with its tensors; raises ModelLoadError where the configuration contradicts them."""
    batch = () if spec.max_batch_size > 0 else (-1,)
    inputs = (TensorSpec(INPUT, "FP32", (*batch, num_features)),)
    outputs = (
        TensorSpec(OUTPUT, "FP32", (*batch, 2)),
        TensorSpec(MEMBERS, "FP32", (*batch, len(members))),
    )
    for what, said, needed in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        if said and said != needed:
            wants = ", ".join(f"{one.name} {one.datatype} {list(one.shape)}" for one in needed)
            raise ModelLoadError(f"config.pbtxt says another {what} than the ensemble has: {wants}")
    weights = ", ".join(f"{member.name} {member.weight:.3f}" for member in ensemble.members)
    return replace(spec, inputs=inputs, outputs=outputs, parameters={**spec.parameters, "members": weights})
