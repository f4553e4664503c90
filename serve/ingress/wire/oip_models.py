"""What the Open Inference Protocol says about a model: metadata and configuration, as protobuf and as JSON.

A `ModelSpec` enters; messages leave for gRPC, and their JSON form for HTTP is made from the same messages, so the two
cannot differ. Called by both listeners.
"""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.service_pb2 import ModelMetadataResponse

from serve.backends.base import ModelSpec, TensorSpec
from serve.repository.config import fill_in


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


def _tensor_metadata(tensor: TensorSpec, max_batch_size: int) -> ModelMetadataResponse.TensorMetadata:
    shape = (-1, *tensor.shape) if max_batch_size > 0 else tensor.shape
    return ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=shape)
