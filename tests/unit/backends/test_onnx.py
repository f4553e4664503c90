"""The onnxruntime backend: what it reads from the model, what it refuses, and that its answers are the model's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.backends import onnx as module
from serve.backends.base import TensorSpec
from serve.backends.onnx import DEFAULT_MAX_BATCH_SIZE, OnnxModel, load_onnx
from serve.errors import InvalidInput, ModelLoadError, NotReady
from serve.repository.config import fill_in, spec_of
from tests.unit.backends.onnx_models import save_identity, save_sum


def load(folder: Path, text: str = "", **parameters: str) -> OnnxModel:
    config = text_format.Parse(f'name: "m" backend: "onnxruntime" {text}', ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    return load_onnx(folder, config, spec_of(config, "1"), lambda line: None)


@pytest.fixture
def summing(tmp_path: Path) -> Path:
    save_sum(tmp_path / "model.onnx")
    return tmp_path


def rows(*values: float) -> np.ndarray:
    return np.array([[value, 2 * value] for value in values], np.float32)


def test_what_the_configuration_leaves_out_comes_from_the_model(summing: Path) -> None:
    spec = load(summing).spec
    assert spec.max_batch_size == DEFAULT_MAX_BATCH_SIZE
    assert spec.inputs == (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "FP32", (2,)))
    assert spec.outputs == (TensorSpec("sum", "FP32", (2,)), TensorSpec("difference", "FP32", (2,)))
    assert spec.parameters["engine"].endswith("CPUExecutionProvider")


def test_a_model_without_a_batch_dimension_has_its_whole_shape(tmp_path: Path) -> None:
    save_sum(tmp_path / "model.onnx", dims=(3, 2))
    spec = load(tmp_path).spec
    assert (spec.max_batch_size, spec.inputs[0].shape) == (0, (3, 2))


def test_answers_are_the_model_s(summing: Path) -> None:
    model = load(summing, "max_batch_size: 8")
    found = model.infer({"a": rows(1, 2, 3), "b": rows(10, 20, 30)})
    np.testing.assert_array_equal(found["sum"], rows(11, 22, 33))
    np.testing.assert_array_equal(found["difference"], rows(-9, -18, -27))


def test_only_the_outputs_that_are_configured_are_computed(summing: Path) -> None:
    inputs = "".join(f'input {{ name: "{name}" data_type: TYPE_FP32 dims: 2 }} ' for name in "ab")
    named = 'output { name: "difference" data_type: TYPE_FP32 dims: -1 }'
    model = load(summing, f"max_batch_size: 8 {inputs} {named}")
    assert list(model.infer({"a": rows(1), "b": rows(1)})) == ["difference"]


@pytest.mark.parametrize(
    ("kind", "datatype", "values"),
    [
        (TensorProto.BOOL, "BOOL", np.array([[True, False]])),
        (TensorProto.UINT8, "UINT8", np.array([[0, 255]], np.uint8)),
        (TensorProto.INT8, "INT8", np.array([[-128, 127]], np.int8)),
        (TensorProto.UINT16, "UINT16", np.array([[0, 65535]], np.uint16)),
        (TensorProto.INT16, "INT16", np.array([[-32768, 32767]], np.int16)),
        (TensorProto.INT32, "INT32", np.array([[-(2**31), 2**31 - 1]], np.int32)),
        (TensorProto.UINT32, "UINT32", np.array([[0, 2**32 - 1]], np.uint32)),
        (TensorProto.INT64, "INT64", np.array([[-(2**63), 2**63 - 1]], np.int64)),
        (TensorProto.UINT64, "UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        (TensorProto.FLOAT16, "FP16", np.array([[1.5, np.nan]], np.float16)),
        (TensorProto.FLOAT, "FP32", np.array([[np.inf, 1e-45]], np.float32)),
        (TensorProto.DOUBLE, "FP64", np.array([[np.nan, 5e-324]], np.float64)),
        (TensorProto.STRING, "BYTES", np.array([[b"", "ü☺".encode()]], np.object_)),
        (TensorProto.FLOAT, "FP32", np.zeros((0, 2), np.float32)),
        (TensorProto.STRING, "BYTES", np.zeros((1, 0), np.object_)),
    ],
)
def test_every_datatype_goes_in_and_comes_out(tmp_path: Path, kind: int, datatype: str, values: np.ndarray) -> None:
    save_identity(tmp_path / "model.onnx", kind)
    model = load(tmp_path, "max_batch_size: 4")
    assert model.spec.inputs[0].datatype == model.spec.outputs[0].datatype == datatype
    found = model.infer({"x": values})["y"]
    assert found.dtype == values.dtype
    assert found.shape == values.shape
    if datatype == "BYTES":
        assert found.tolist() == values.tolist()
    else:
        assert found.tobytes() == values.tobytes()


def test_text_that_is_none_is_the_request_s_fault(tmp_path: Path) -> None:
    save_identity(tmp_path / "model.onnx", TensorProto.STRING)
    with pytest.raises(InvalidInput, match="x has text that is not UTF-8"):
        load(tmp_path).infer({"x": np.array([[b"\xff"]], np.object_)})


def test_tensors_that_do_not_fit_are_the_request_s_fault(summing: Path) -> None:
    with pytest.raises(InvalidInput, match="the model refused the request"):
        load(summing).infer({"a": rows(1), "b": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('input { name: "c" data_type: TYPE_FP32 dims: 2 }', r"has input 'c'; model.onnx has a, b"),
        ('input { name: "a" data_type: TYPE_INT32 dims: 2 }', r"input a as INT32 \[2\]; model.onnx has it as FP32"),
        ('input { name: "a" data_type: TYPE_FP32 dims: 3 }', r"input a as FP32 \[3\]; model.onnx has it as FP32 \[2\]"),
        ('input { name: "a" data_type: TYPE_FP32 dims: 2 }', "lacks input 'b', which model.onnx needs"),
        ('output { name: "z" data_type: TYPE_FP32 dims: 2 }', "has output 'z'"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_refused_and_says_where(
    summing: Path, text: str, said: str
) -> None:
    with pytest.raises(ModelLoadError, match=said):
        load(summing, f"max_batch_size: 4 {text}")


def test_a_batch_needs_a_free_first_dimension(tmp_path: Path) -> None:
    save_sum(tmp_path / "model.onnx", dims=(3, 2))
    with pytest.raises(ModelLoadError, match=r"max_batch_size is 4, but .* has tensors whose first dimension"):
        load(tmp_path, "max_batch_size: 4")


def test_files_that_are_no_model_say_so(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is missing"):
        load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(tmp_path)


def test_types_without_a_name_in_the_protocol_are_refused(tmp_path: Path) -> None:
    save_identity(tmp_path / "model.onnx", TensorProto.COMPLEX64)
    with pytest.raises(ModelLoadError, match=r"cannot be loaded|of type tensor\(complex64\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("intra_op_thread_count", "-1"), ("execution_mode", "2"), ("inter_op_thread_count", "x")]
)
def test_wrong_parameters_are_named(summing: Path, name: str, value: str) -> None:
    with pytest.raises(ModelLoadError, match=f"parameter {name} is '{value}'"):
        load(summing, **{name: value})


def test_threads_and_optimisation_are_as_the_configuration_says(summing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    made = []
    session = onnxruntime.InferenceSession

    def making(file: str, options: onnxruntime.SessionOptions, **others: object) -> object:
        made.append(options)
        return session(file, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", making)
    load(summing, "optimization { graph { level: -1 } }", intra_op_thread_count="3", execution_mode="1")
    assert made[0].intra_op_num_threads == 3
    assert made[0].execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert made[0].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


@pytest.mark.parametrize(
    ("text", "available", "chosen"),
    [
        ("", "CPU", "CPU"),
        ("", "CUDA CPU", "CUDA CPU"),
        ("instance_group { kind: KIND_CPU }", "CUDA CPU", "CPU"),
        ("instance_group { kind: KIND_GPU }", "CPU", "CPU"),
        (
            'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }',
            "CPU CUDA Tensorrt", "Tensorrt CUDA CPU",
        ),
    ],
)  # fmt: skip
def test_the_best_provider_there_is_runs_the_model(text: str, available: str, chosen: str) -> None:
    config = text_format.Parse(text, ModelConfig())
    names = [f"{one}ExecutionProvider" for one in available.split()]
    assert module._providers(config, names) == [f"{one}ExecutionProvider" for one in chosen.split()]


def test_a_closed_model_says_so(summing: Path) -> None:
    model = load(summing)
    model.close()
    with pytest.raises(NotReady, match="model m version 1 is closed"):
        model.infer({"a": rows(1), "b": rows(1)})


def test_what_goes_wrong_inside_the_engine_is_not_told(summing: Path) -> None:
    model = load(summing)
    broken = SimpleNamespace(run=lambda *_: 1 / 0)
    model._session = broken
    with pytest.raises(Exception, match="internal error"):
        model.infer({"a": rows(1), "b": rows(1)})


def test_the_configuration_that_is_shown_has_what_was_completed(summing: Path) -> None:
    config = ModelConfig(name="m", backend="onnxruntime")
    fill_in(config, load(summing).spec)
    assert [(one.name, list(one.dims)) for one in config.input] == [("a", [2]), ("b", [2])]
    assert config.max_batch_size == DEFAULT_MAX_BATCH_SIZE
