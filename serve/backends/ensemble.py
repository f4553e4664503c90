"""The `ensemble` backend: a graph of other models, as `ensemble_scheduling` describes it.

Enters: a configuration; there is no file. Leaves: an `EnsembleModel`. Called by the model repository; the protocol's
`infer` calls the model, and it has each step's model infer, in the order in which their inputs become known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import Ask, ModelSpec, Tensor, TensorSpec
from serve.errors import HeadroomError, ModelFailed, ModelLoadError

Progress = Callable[[str], None]
Describe = Callable[[str, str], ModelSpec]
"""What another model of the repository is, by name and version or "". Raises HeadroomError."""

_MAX_STEPS = 256


class Step(NamedTuple):
    """One model, and which of the ensemble's tensors its own are: (its name, the ensemble's)."""

    model: str
    version: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


class EnsembleModel:
    """Thread-safe as far as its steps' models are."""

    def __init__(self, spec: ModelSpec, steps: Sequence[Step], ask: Ask) -> None:
        self.spec = spec
        self.steps = tuple(steps)
        self._ask = ask

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs one batch through every step. Raises the error of the step that fails, with its name."""
        known = dict(inputs)
        for step in self.steps:
            given = {own: known[shared] for own, shared in step.inputs if shared in known}
            try:
                found = self._ask(step.model, step.version, given)
            except HeadroomError as error:
                error.message = f"in ensemble '{self.spec.name}', {step.model}: {error.message}"
                raise
            for own, shared in step.outputs:
                if own not in found:
                    raise ModelFailed(f"in ensemble '{self.spec.name}', {step.model} gave no output '{own}'")
                known[shared] = found[own]
        return {tensor.name: known[tensor.name] for tensor in self.spec.outputs}

    def close(self) -> None:
        """Its steps' models are others'."""


def steps_of(config: ModelConfig) -> list[Step]:
    """The steps as they are configured."""
    return [
        Step(
            one.model_name, "" if one.model_version < 1 else str(one.model_version),
            tuple(sorted(one.input_map.items())), tuple(sorted(one.output_map.items())),
        )
        for one in config.ensemble_scheduling.step
    ]  # fmt: skip


def load_ensemble(
    folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress, *, ask: Ask, describe: Describe
) -> EnsembleModel:
    """Checks the graph; raises ModelLoadError naming the step or tensor that is wrong."""
    steps = steps_of(config)
    if not 0 < len(steps) <= _MAX_STEPS:
        raise ModelLoadError(f"ensemble_scheduling has {len(steps)} steps; allowed 1 to {_MAX_STEPS}")
    known = {tensor.name: _whole(tensor, spec) for tensor in spec.inputs}
    ordered = _ordered(steps, known)
    for step in ordered:
        _check(step, spec, known, _described(step, describe))
    for tensor in spec.outputs:
        if tensor.name not in known:
            raise ModelLoadError(f"no step gives the ensemble's output {tensor.name!r}")
        _must_fit(f"output {tensor.name!r}", _whole(tensor, spec), known[tensor.name])
    progress(f"{spec.name}: {' → '.join(step.model for step in ordered)}")
    return EnsembleModel(spec, ordered, ask)


def _ordered(steps: Sequence[Step], given: Mapping[str, TensorSpec]) -> list[Step]:
    """In an order in which every step's inputs are known before it."""
    made_by: dict[str, Step] = {}
    for step in steps:
        for _, shared in step.outputs:
            if shared in given or shared in made_by:
                raise ModelLoadError(f"tensor {shared!r} is given by {step.model} and by another; allowed once")
            made_by[shared] = step
    known, ordered, waiting = set(given), [], list(steps)
    while waiting:
        ready = [step for step in waiting if all(shared in known for _, shared in step.inputs)]
        if not ready:
            missing = sorted({shared for step in waiting for _, shared in step.inputs} - known)
            reason = "its steps wait for each other" if missing[0] in made_by else f"no step gives {missing[0]!r}"
            raise ModelLoadError(f"step {waiting[0].model} cannot run: {reason}")
        ordered += ready
        known |= {shared for step in ready for _, shared in step.outputs}
        waiting = [step for step in waiting if step not in ready]
    return ordered


def _described(step: Step, describe: Describe) -> ModelSpec:
    try:
        return describe(step.model, step.version)
    except HeadroomError as error:
        raise ModelLoadError(f"step {step.model}: {error.message}") from None


def _check(step: Step, spec: ModelSpec, known: dict[str, TensorSpec], model: ModelSpec) -> None:
    """Against the model's own tensors; notes what its outputs are."""
    if 0 < model.max_batch_size < spec.max_batch_size:
        raise ModelLoadError(
            f"max_batch_size is {spec.max_batch_size}; allowed at most {model.max_batch_size}, which step {step.model} has"
        )
    own_inputs, own_outputs = ({one.name: one for one in tensors} for tensors in (model.inputs, model.outputs))
    for own, shared in step.inputs:
        if own not in own_inputs:
            raise ModelLoadError(f"step {step.model} has no input {own!r}; it has {', '.join(own_inputs)}")
        _must_fit(f"input {own!r} of step {step.model}", _whole(own_inputs[own], model), known[shared])
    mapped = {own for own, _ in step.inputs}
    for one in model.inputs:
        if one.name not in mapped and not one.is_optional:
            raise ModelLoadError(f"input_map of step {step.model} lacks {one.name!r}")
    for own, shared in step.outputs:
        if own not in own_outputs:
            raise ModelLoadError(f"step {step.model} has no output {own!r}; it has {', '.join(own_outputs)}")
        known[shared] = _whole(own_outputs[own], model)


def _whole(tensor: TensorSpec, spec: ModelSpec) -> TensorSpec:
    """With its batch dimension."""
    shape = (-1, *tensor.shape) if spec.max_batch_size else tensor.shape
    return TensorSpec(tensor.name, tensor.datatype, shape)


def _must_fit(what: str, wanted: TensorSpec, given: TensorSpec) -> None:
    is_same = wanted.datatype == given.datatype and len(wanted.shape) == len(given.shape)
    if not is_same or any(a != b and -1 not in (a, b) for a, b in zip(wanted.shape, given.shape, strict=True)):
        raise ModelLoadError(
            f"{what} is {wanted.datatype} {list(wanted.shape)}; {given.name!r} is {given.datatype} {list(given.shape)}"
        )
