"""What enters and leaves a model's `infer`, without HTTP or gRPC in it.

The values are frozen msgspec structs, because one is built in 0.2 µs and a frozen dataclass in 1.1 µs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from serve.backends.base import Tensor

Parameter = bool | int | float | str


class RequestedOutput(msgspec.Struct, frozen=True):
    """One output the client wants. `num_classes` > 0 asks for the best classes instead of the tensor."""

    name: str
    is_binary: bool = True
    num_classes: int = 0


class InferRequest(msgspec.Struct, frozen=True):
    """One checked infer request. `inputs` are row-major, read-only views of the request's body where possible; BYTES
    tensors are object arrays of `bytes`. `batch_size` is None for a model without a batch dimension. `parameters` are
    the client's own ones and the sequence_* ones; timeout, priority and binary_data_output are lifted out of them.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[RequestedOutput, ...]
    id: str = ""
    parameters: Mapping[str, Parameter] = {}
    timeout_us: int | None = None
    priority: int = 0
    batch_size: int | None = None


class InferResponse(msgspec.Struct, frozen=True):
    """One request's answer: every output of the model. `labels` names an output's classes, by index."""

    model_name: str
    model_version: str
    outputs: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter] = {}
    labels: Mapping[str, Sequence[str]] = {}


class Inferred(msgspec.Struct, frozen=True):
    """A request beside its answer: the answer is encoded as the request asked."""

    request: InferRequest
    response: InferResponse
