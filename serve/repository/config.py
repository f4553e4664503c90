"""Reads a model's config.pbtxt, Triton's text protobuf.

A model's folder enters; a checked and completed ModelConfig, the `ModelSpec` it describes, its class labels and the
versions its policy asks for leave. Called by the repository and by the backends' training scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelInstanceGroup, ModelOutput

from serve.backends.base import ModelSpec, TensorSpec
from serve.errors import HeadroomError, InvalidInput

CONFIG_FILE = "config.pbtxt"
_MAX_DEPTH = 32

# The backend that a repository written for an old Triton names by its platform only.
_BACKENDS = {
    "ensemble": "ensemble",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
}


# What a version's folder holds for a backend that is told nothing else; a model without a configuration is known by it.
_DEFAULT_FILES = {
    "model.onnx": "onnxruntime",
    "model.py": "python",
}


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """Versions to try, best first, and how many of them are to be ready."""

    order: tuple[int, ...]
    num_wanted: int


@dataclass(frozen=True, slots=True)
class _Source:
    """The file being read, to say where something is wrong."""

    name: str
    text: str

    def error(self, token: str, problem: str, field: str) -> InvalidInput:
        """An error at the first line with `token`; at the file when no line has it."""
        found = re.search(rf"(?<!\w){re.escape(token)}(?!\w)", self.text) if token else None
        line = f":{self.text.count(chr(10), 0, found.start()) + 1}" if found else ""
        return InvalidInput(f"{self.name}{line}: {problem}", field=field)


def read_config(model_dir: Path) -> ModelConfig:
    """The configuration in `model_dir`, with what Triton fills in filled in: name, backend (by the model's file, where
    there is no configuration at all), version policy (the latest one), one instance. Raises InvalidInput naming file and
    line.
    """
    if not (model_dir / CONFIG_FILE).exists() and (backend := _backend_by_files(model_dir)) is not None:
        return completed(ModelConfig(backend=backend), model_dir.name)
    source = _read(model_dir)
    config = _parse(source)
    _complete(config, model_dir.name)
    _check(config, model_dir.name, source)
    return config


def is_model_folder(model_dir: Path) -> bool:
    """Whether it has a configuration, or can do without one."""
    return (model_dir / CONFIG_FILE).is_file() or _backend_by_files(model_dir) is not None


def step_names(config: ModelConfig) -> list[str]:
    """Models that an ensemble is made of, each once."""
    return list(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step))


def parts_of(model_dir: Path) -> list[str]:
    """`step_names` of a folder's configuration; none where it cannot be read."""
    try:
        return step_names(read_config(model_dir))
    except HeadroomError:
        return []


def version_numbers(model_dir: Path) -> list[int]:
    """The folders that are versions; as in Triton, other names and names that start with 0 are ignored."""
    names = [path.name for path in model_dir.iterdir() if path.is_dir()]
    return [int(name) for name in names if name.isascii() and name.isdigit() and not name.startswith("0")]


def _backend_by_files(model_dir: Path) -> str | None:
    """Of a model without a configuration."""
    try:
        numbers = version_numbers(model_dir)
    except OSError:
        return None
    found = (name for number in sorted(numbers) for name in _DEFAULT_FILES if (model_dir / str(number) / name).exists())
    return next((_DEFAULT_FILES[name] for name in found), None)


def config_of_json(text: str, name: str) -> ModelConfig:
    """The configuration that a client gives in place of the file's. Raises InvalidInput with what is wrong."""
    try:
        config: ModelConfig = json_format.Parse(text, ModelConfig(), max_recursion_depth=_MAX_DEPTH)
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidInput(f"config is not a model configuration: {str(error)[:300]}", field="config") from None
    return completed(config, name)


def completed(config: ModelConfig, name: str) -> ModelConfig:
    """A configuration that is no file's, checked and completed as one is. Raises InvalidInput."""
    _complete(config, name)
    _check(config, name, _Source("config", ""))
    return config


def fill_in(config: ModelConfig, spec: ModelSpec) -> None:
    """Writes into a configuration what only its model could tell: tensors, and the batch size."""
    if not config.input:
        config.input.extend(ModelInput(**_tensor_fields(tensor), optional=tensor.is_optional) for tensor in spec.inputs)
    if not config.output:
        config.output.extend(ModelOutput(**_tensor_fields(tensor)) for tensor in spec.outputs)
    config.max_batch_size = spec.max_batch_size


def spec_of(config: ModelConfig, version: str) -> ModelSpec:
    """The specification of one version of the configured model."""
    return ModelSpec(
        name=config.name,
        version=version,
        platform=config.platform or config.backend,
        backend=config.backend,
        max_batch_size=config.max_batch_size,
        inputs=tuple(_tensor_spec(tensor, is_optional=tensor.optional) for tensor in config.input),
        outputs=tuple(_tensor_spec(tensor) for tensor in config.output),
        parameters={name: parameter.string_value for name, parameter in config.parameters.items()},
    )


def version_plan(config: ModelConfig, available: Iterable[int]) -> VersionPlan:
    """What the version policy asks for, newest first.

    `latest` may fall back: every version is in the order and only the wanted number is to be ready. `all` and
    `specific` want exactly what they name, a missing version included.
    """
    newest_first = tuple(sorted(available, reverse=True))
    policy = config.version_policy
    if policy.HasField("specific"):
        asked = tuple(sorted(set(policy.specific.versions), reverse=True))
        return VersionPlan(asked, len(asked))
    if policy.HasField("all"):
        return VersionPlan(newest_first, len(newest_first))
    return VersionPlan(newest_first, policy.latest.num_versions or 1)


def read_labels(config: ModelConfig, model_dir: Path) -> Mapping[str, tuple[str, ...]]:
    """The class labels of each output that names a `label_filename`, one a line, by index. Raises InvalidInput when the
    file cannot be read or is not in the model's folder.
    """
    return {
        output.name: _label_lines(model_dir, output.label_filename) for output in config.output if output.label_filename
    }


def _read(model_dir: Path) -> _Source:
    name = f"{model_dir.name}/{CONFIG_FILE}"
    try:
        return _Source(name, (model_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInput(f"{name}: cannot be read: {reason}") from error


def _parse(source: _Source) -> ModelConfig:
    try:
        return text_format.Parse(source.text, ModelConfig())
    except text_format.ParseError as error:
        problem = re.sub(r"^\d+:\d+\s*:\s*", "", str(error))
        raise InvalidInput(f"{source.name}:{error.GetLine() or 1}: {problem}") from None


def _complete(config: ModelConfig, folder: str) -> None:
    config.name = config.name or folder
    config.backend = config.backend or _BACKENDS.get(config.platform, "")
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if not config.instance_group:
        config.instance_group.add(kind=ModelInstanceGroup.KIND_AUTO)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
        group.count = group.count or 1


def _check(config: ModelConfig, folder: str, source: _Source) -> None:
    if config.name != folder:
        raise source.error("name", f"name is {config.name!r}; allowed {folder!r}, the folder's name", "name")
    if not config.backend:
        raise source.error(
            "platform",
            f"backend is not set and platform is {config.platform!r}; "
            f"allowed a backend, or a platform of {', '.join(sorted(_BACKENDS))}",
            "backend",
        )
    if config.max_batch_size < 0:
        raise source.error(
            "max_batch_size",
            f"max_batch_size is {config.max_batch_size}; allowed 0 (no batch dimension) and up",
            "max_batch_size",
        )
    for kind, tensors in (("input", config.input), ("output", config.output)):
        names: set[str] = set()
        for index, tensor in enumerate(tensors):
            _check_tensor(tensor, f"{kind}[{index}]", names, source)
            names.add(tensor.name)


def _check_tensor(tensor: Any, path: str, names: set[str], source: _Source) -> None:
    token = tensor.name or path.partition("[")[0]
    if not tensor.name or tensor.name in names:
        raise source.error(token, f"{path}.name is {tensor.name!r}; allowed a name of its own", f"{path}.name")
    if tensor.data_type == DataType.TYPE_INVALID:
        raise source.error(token, f"{path}.data_type is not set; allowed TYPE_FP32 and the like", f"{path}.data_type")
    if not tensor.dims or any(dim < 1 and dim != -1 for dim in tensor.dims):
        raise source.error(
            token, f"{path}.dims is {list(tensor.dims)}; allowed sizes of 1 and up, and -1 for any", f"{path}.dims"
        )
    if tensor.HasField("reshape"):
        raise source.error(token, f"{path}.reshape is set; allowed dims as the model has them", f"{path}.reshape")


def _tensor_spec(tensor: Any, *, is_optional: bool = False) -> TensorSpec:
    datatype = DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return TensorSpec(tensor.name, "BYTES" if datatype == "STRING" else datatype, tuple(tensor.dims), is_optional)


def _tensor_fields(tensor: TensorSpec) -> dict[str, Any]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": DataType.Value(f"TYPE_{datatype}"), "dims": tensor.shape}


def _label_lines(model_dir: Path, filename: str) -> tuple[str, ...]:
    path = (model_dir / filename).resolve()
    if not path.is_relative_to(model_dir.resolve()):
        raise InvalidInput(f"label_filename is {filename!r}; allowed a file in the model's folder")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"label_filename is {filename!r}; it cannot be read as UTF-8 text") from error
