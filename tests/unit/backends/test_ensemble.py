"""The ensemble backend: the graph is checked when it is loaded, and run in the order of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.backends.ensemble import EnsembleModel, load_ensemble
from serve.errors import HeadroomError, InvalidInput, ModelFailed, ModelLoadError, NotFound
from serve.repository.config import spec_of, step_names


def spec(name: str, inputs: str, outputs: str, max_batch_size: int = 8, datatype: str = "FP32") -> ModelSpec:
    """Inputs and outputs by name, `?` behind an optional one; of one free dimension."""

    def tensors(names: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(one.rstrip("?"), datatype, (-1,), one.endswith("?")) for one in names.split())

    return ModelSpec(name, "1", "", "", max_batch_size, tensors(inputs), tensors(outputs))


MODELS = {
    "double": spec("double", "x", "y"), "add": spec("add", "a b c?", "sum"), "small": spec("small", "x", "y", 2),
    "whole": spec("whole", "x", "y", datatype="INT64"), "unbatched": spec("unbatched", "x", "y", 0),
}  # fmt: skip


def describe(name: str, version: str) -> ModelSpec:
    if name not in MODELS or version not in ("", "1"):
        raise NotFound(f"Request for unknown model: '{name}' is not found")
    return MODELS[name]


class Asker:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str, version: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.asked.append(f"{name}{version}({','.join(sorted(inputs))})")
        if name == "add":
            return {"sum": sum(inputs.values())}  # type: ignore[dict-item]
        if (inputs["x"] < 0).any():
            raise InvalidInput("x is negative", field="x")
        return {"y": inputs["x"] * 2} if (inputs["x"] != 13).all() else {}


def step(model: str, inputs: str, outputs: str, version: int = -1) -> str:
    """`x=in` pairs."""
    maps = [
        (kind, pair.split("=")) for kind, pairs in (("input", inputs), ("output", outputs)) for pair in pairs.split()
    ]
    text = "".join(f'{kind}_map {{ key: "{own}" value: "{shared}" }} ' for kind, (own, shared) in maps)
    return f'step {{ model_name: "{model}" model_version: {version} {text} }} '


def config(
    steps: str, inputs: str = "in", outputs: str = "out", max_batch_size: int = 4, more: str = ""
) -> ModelConfig:
    tensors = "".join(f'input {{ name: "{name}" data_type: TYPE_FP32 dims: -1 }} ' for name in inputs.split())
    tensors += "".join(f'output {{ name: "{name}" data_type: TYPE_FP32 dims: -1 }} ' for name in outputs.split())
    text = (
        f'name: "e" platform: "ensemble" max_batch_size: {max_batch_size} {tensors} ensemble_scheduling {{ {steps} }}'
    )
    return text_format.Parse(text, ModelConfig())


def load(parsed: ModelConfig, asker: Asker | None = None) -> EnsembleModel:
    given = spec_of(parsed, "1")
    return load_ensemble(Path("/none"), parsed, given, lambda line: None, ask=asker or Asker(), describe=describe)


BOTH_WAYS = (
    step("add", "a=twice b=four_times", "sum=out")
    + step("double", "x=twice", "y=four_times")
    + step("double", "x=in", "y=twice")
)


def rows(*values: float) -> np.ndarray:
    return np.array([[value] for value in values], np.float32)


def test_steps_run_in_the_order_of_their_tensors_whatever_the_order_they_are_written_in() -> None:
    asker = Asker()
    found = load(config(BOTH_WAYS), asker).infer({"in": rows(1, 2)})
    np.testing.assert_array_equal(found["out"], rows(6, 12))
    assert asker.asked == ["double(x)", "double(x)", "add(a,b)"]


def test_only_the_ensembles_outputs_are_given_and_a_tensor_may_be_used_often() -> None:
    steps = step("double", "x=in", "y=out") + step("add", "a=in b=in c=in", "sum=three")
    found = load(config(steps, outputs="out three")).infer({"in": rows(5)})
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"out": [[10.0]], "three": [[15.0]]}
    assert list(load(config(steps)).infer({"in": rows(5)})) == ["out"]


def test_an_optional_input_that_is_not_given_is_not_passed_on() -> None:
    asker = Asker()
    parsed = config(step("add", "a=in b=in c=maybe", "sum=out"), inputs="in maybe")
    parsed.input[1].optional = True
    load(parsed, asker).infer({"in": rows(1)})
    assert asker.asked == ["add(a,b)"]


def test_a_step_may_want_a_version() -> None:
    asker = Asker()
    load(config(step("double", "x=in", "y=out", version=1)), asker).infer({"in": rows(1)})
    assert asker.asked == ["double1(x)"]


def test_the_error_of_a_step_says_where() -> None:
    model = load(config(BOTH_WAYS))
    with pytest.raises(InvalidInput) as failed:
        model.infer({"in": rows(-1)})
    assert failed.value.message == "in ensemble 'e', double: x is negative"
    with pytest.raises(ModelFailed, match="in ensemble 'e', double gave no output 'y'"):
        model.infer({"in": rows(13)})


@pytest.mark.parametrize(
    ("parsed", "said"),
    [
        (config(""), "has 0 steps"),
        (config(step("none", "x=in", "y=out")), "step none: Request for unknown model: 'none'"),
        (config(step("double", "x=in", "y=out", version=7)), "step double: Request for unknown model"),
        (config(step("double", "x=nowhere", "y=out")), "step double cannot run: no step gives 'nowhere'"),
        (config(step("double", "x=b", "y=a") + step("double", "x=a", "y=b")), "its steps wait for each other"),
        (config(step("double", "x=in", "y=in")), "tensor 'in' is given by double and by another"),
        (config(step("double", "x=in", "y=out") * 2), "tensor 'out' is given by double and by another"),
        (config(step("double", "z=in", "y=out")), "step double has no input 'z'; it has x"),
        (config(step("double", "x=in", "z=out")), "step double has no output 'z'; it has y"),
        (config(step("add", "a=in", "sum=out")), "input_map of step add lacks 'b'"),
        (config(step("double", "x=in", "y=other")), "no step gives the ensemble's output 'out'"),
        (config(step("small", "x=in", "y=out")), "max_batch_size is 4; allowed at most 2, which step small has"),
        (
            config(step("whole", "x=in", "y=out")),
            r"input 'x' of step whole is INT64 \[-1, -1\]; 'in' is FP32 \[-1, -1\]",
        ),
        (config(step("unbatched", "x=in", "y=out")), r"input 'x' of step unbatched is FP32 \[-1\]; 'in' is FP32"),
    ],
)
def test_a_graph_that_is_wrong_is_refused_and_says_where(parsed: ModelConfig, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        load(parsed)


def test_step_names_are_each_once_and_in_order() -> None:
    assert step_names(config(BOTH_WAYS)) == ["add", "double"]


def test_errors_stay_what_they_were() -> None:
    with pytest.raises(HeadroomError) as failed:
        load(config(BOTH_WAYS)).infer({"in": rows(-1)})
    assert failed.value.kind == "invalid_input"
