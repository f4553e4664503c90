"""The `onnxruntime` backend: ONNX models on ONNX Runtime.

Enters: a version's folder with `model.onnx` and its configuration. Leaves: an `OnnxModel`. Called by the model repository;
the protocol's `infer` calls the model. Tensors and the batch size that config.pbtxt leaves out come from the model.

The best provider there is runs it: TensorRT where the configuration asks for it (`optimization.execution_accelerators`, as
for Triton), CUDA, and the CPU for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.errors import Internal, InvalidInput, ModelLoadError, NotReady

Progress = Callable[[str], None]

FILE_NAME = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4
"""Of a model with a batch dimension whose configuration names none: as Triton completes it."""

_DATATYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip
_MAX_THREADS = 1024


class OnnxModel:
    """A loaded session. Thread-safe; runs without the interpreter's lock."""

    def __init__(self, spec: ModelSpec, session: Any) -> None:
        self.spec = spec
        self._session = session
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._text_outputs = [tensor.name for tensor in spec.outputs if tensor.datatype == "BYTES"]
        self._text_inputs = [tensor.name for tensor in spec.inputs if tensor.datatype == "BYTES"]

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs one batch; raises InvalidInput where the model refuses the tensors' shapes or contents."""
        session = self._session  # one and the same for the whole call: it may be closed meanwhile
        if session is None:
            raise NotReady(f"model {self.spec.name} version {self.spec.version} is closed")
        feeds = dict(inputs)
        for name in self._text_inputs:
            feeds[name] = _as_text(feeds[name], name)
        try:
            found = dict(zip(self._outputs, session.run(self._outputs, feeds), strict=True))
        except Exception as error:
            raise _failure(error) from None
        for name in self._text_outputs:
            texts = found[name]
            found[name] = np.array([text.encode() for text in texts.flat], np.object_).reshape(texts.shape)
        return found

    def close(self) -> None:
        """Lets the session go with its last call."""
        self._session = None


def load_onnx(folder: Path, config: ModelConfig, spec: ModelSpec, progress: Progress) -> OnnxModel:
    """Loads the version in `folder`; raises ModelLoadError naming the file and why."""
    import onnxruntime

    file = folder / (config.default_model_filename or FILE_NAME)
    if not file.exists():
        raise ModelLoadError(f"{file} is missing; it should hold the model")
    options = _options(config, spec)
    providers = _providers(config, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:
        raise ModelLoadError(f"{file} cannot be loaded: {_first_line(error)}") from None
    spec = _completed(spec, file.name, session.get_inputs(), session.get_outputs())
    engine = f"ONNX Runtime {onnxruntime.__version__}, {session.get_providers()[0]}"
    progress(f"{spec.name}: {engine}")
    return OnnxModel(replace(spec, parameters={**spec.parameters, "engine": engine}), session)


def _options(config: ModelConfig, spec: ModelSpec) -> Any:
    """As Triton's parameters of this backend say: threads, execution mode, level of optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = _number(spec, "intra_op_thread_count", 0, _MAX_THREADS)
    options.inter_op_num_threads = _number(spec, "inter_op_thread_count", 0, _MAX_THREADS)
    if _number(spec, "execution_mode", 0, 1):
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    # A pool that spins between two runs takes the cores from everything else in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    levels = onnxruntime.GraphOptimizationLevel
    if config.optimization.graph.level < 0:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    elif config.optimization.graph.level == 1:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    return options


def _number(spec: ModelSpec, name: str, least: int, most: int) -> int:
    text = spec.parameters.get(name, "0")
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise ModelLoadError(f"parameter {name} is {text[:32]!r}; allowed {least} to {most}")
    return int(text)


def _providers(config: ModelConfig, available: Sequence[str]) -> list[str]:
    """In the order of preference."""
    kinds = {group.kind for group in config.instance_group}
    if kinds == {ModelInstanceGroup.KIND_CPU}:
        return ["CPUExecutionProvider"]
    accelerators = {one.name for one in config.optimization.execution_accelerators.gpu_execution_accelerator}
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if "tensorrt" in accelerators:
        wanted.insert(0, "TensorrtExecutionProvider")
    return [provider for provider in wanted if provider in available]


def _completed(spec: ModelSpec, file: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> ModelSpec:
    """The specification with what the configuration left out; raises ModelLoadError where it contradicts the model."""
    model_inputs, model_outputs = ([_whole(node, file) for node in nodes] for nodes in (inputs, outputs))
    max_batch_size = spec.max_batch_size
    if not max_batch_size and not spec.inputs and not spec.outputs and _has_batch([*model_inputs, *model_outputs]):
        max_batch_size = DEFAULT_MAX_BATCH_SIZE
    skip = 1 if max_batch_size else 0
    found = [[replace(one, shape=one.shape[skip:]) for one in nodes] for nodes in (model_inputs, model_outputs)]
    if max_batch_size and not _has_batch([*model_inputs, *model_outputs]):
        raise ModelLoadError(
            f"max_batch_size is {max_batch_size}, but {file} has tensors whose first dimension is not free"
        )
    return replace(
        spec, max_batch_size=max_batch_size,
        inputs=_agreed("input", spec.inputs, found[0], file, must_have_all=True),
        outputs=_agreed("output", spec.outputs, found[1], file, must_have_all=False),
    )  # fmt: skip


def _whole(node: Any, file: str) -> TensorSpec:
    """A tensor of the model, its batch dimension included; sizes that are names, or nothing, are free."""
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        allowed = ", ".join(name.removeprefix("tensor(").removesuffix(")") for name in _DATATYPES)
        raise ModelLoadError(f"{file} has {node.name} of type {node.type}; allowed tensors of {allowed}")
    return TensorSpec(node.name, datatype, tuple(dim if isinstance(dim, int) and dim > 0 else -1 for dim in node.shape))


def _has_batch(tensors: Sequence[TensorSpec]) -> bool:
    return all(tensor.shape[:1] == (-1,) for tensor in tensors)


def _agreed(
    what: str, configured: Sequence[TensorSpec], found: Sequence[TensorSpec], file: str, *, must_have_all: bool
) -> tuple[TensorSpec, ...]:
    """The configuration's tensors, which the model must have as they are; the model's where there are none."""
    if not configured:
        return tuple(found)
    by_name = {tensor.name: tensor for tensor in found}
    for tensor in configured:
        own = by_name.get(tensor.name)
        if own is None:
            raise ModelLoadError(f"config.pbtxt has {what} {tensor.name!r}; {file} has {', '.join(by_name)}")
        is_same = tensor.datatype == own.datatype and len(tensor.shape) == len(own.shape)
        if not is_same or any(a != b and -1 not in (a, b) for a, b in zip(tensor.shape, own.shape, strict=True)):
            raise ModelLoadError(
                f"config.pbtxt has {what} {tensor.name} as {tensor.datatype} {list(tensor.shape)}; "
                f"{file} has it as {own.datatype} {list(own.shape)}"
            )
    missing = by_name.keys() - {tensor.name for tensor in configured}
    if must_have_all and missing:
        raise ModelLoadError(f"config.pbtxt lacks {what} {sorted(missing)[0]!r}, which {file} needs")
    return tuple(configured)


def _as_text(values: Tensor, name: str) -> Tensor:
    try:
        texts: list[bytes] = values.ravel().tolist()
        return np.array([text.decode() for text in texts], np.object_).reshape(values.shape)
    except UnicodeDecodeError:
        raise InvalidInput(f"{name} has text that is not UTF-8, which is all this model reads", field=name) from None


def _failure(error: Exception) -> Exception:
    """ONNX Runtime says of a tensor that does not fit either that, or that a node failed."""
    is_of_input = type(error).__name__ in ("InvalidArgument", "RuntimeException", "Fail")
    return InvalidInput(f"the model refused the request: {_first_line(error)}") if is_of_input else Internal()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:400]
