"""What the Open Inference Protocol says about a model: metadata and configuration, as protobuf and as JSON.

A `ModelSpec` enters; messages leave for gRPC, and their JSON form for HTTP is made from the same messages, so the two
cannot differ. Called by both listeners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.service_pb2 import ModelMetadataResponse

from serve.backends.base import ModelSpec, TensorSpec
from serve.repository.config import fill_in

_INTEGERS_OF_64_BITS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def model_metadata(spec: ModelSpec, versions: Sequence[str]) -> ModelMetadataResponse:
    """Name, versions, platform and tensors; shapes hold the batch dimension as -1 where the model has one."""
    return ModelMetadataResponse(
        name=spec.name,
        versions=versions,
        platform=spec.platform,
        inputs=[_tensor_metadata(tensor, spec.max_batch_size) for tensor in spec.inputs],
        outputs=[_tensor_metadata(tensor, spec.max_batch_size) for tensor in spec.outputs],
    )


def model_config(spec: ModelSpec, steps: Sequence[str] = ()) -> model_config_pb2.ModelConfig:
    """The configuration of a model that no config.pbtxt describes: a pipeline. `steps` are the names of the models that
    make it up; a tool that sees an ensemble reports each of them from its own statistics.
    """
    config = model_config_pb2.ModelConfig(name=spec.name, platform=spec.platform, backend=spec.backend)
    fill_in(config, spec)
    config.version_policy.latest.num_versions = 1
    for name, value in spec.parameters.items():
        config.parameters[name].string_value = value
    for step in steps:
        config.ensemble_scheduling.step.add(model_name=step, model_version=-1)
    return config


def as_json(message: Message) -> dict[str, Any]:
    """A message in the form Triton's HTTP endpoints give: the .proto's field names, enum names, fields at their default
    included, messages that are not set left out, and 64-bit integers as numbers (protobuf's own JSON has strings).
    """
    tree = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _with_numbers(tree, message.DESCRIPTOR)


def _tensor_metadata(tensor: TensorSpec, max_batch_size: int) -> ModelMetadataResponse.TensorMetadata:
    shape = (-1, *tensor.shape) if max_batch_size > 0 else tensor.shape
    return ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=shape)


def _with_numbers(tree: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    return {name: _field(value, descriptor.fields_by_name[name]) for name, value in tree.items()}


def _field(value: Any, field: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        return {key: _single(item, value_field) for key, item in value.items()}
    return [_single(item, field) for item in value] if isinstance(value, list) else _single(value, field)


def _single(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return _with_numbers(value, field.message_type)
    return int(value) if field.cpp_type in _INTEGERS_OF_64_BITS else value
