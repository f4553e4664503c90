"""What the Open Inference Protocol's two codecs share: parameters with a meaning, inputs, outputs, classification.

Called by `oip_http` and `oip_grpc`, which turn a message into an `InferRequest` and an `InferResponse` into a message.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.errors import Internal, InvalidInput, Unsupported
from serve.ingress.wire.oip_tensors import datatype_of, num_elements, top_classes
from serve.pipelines.infer.contract import InferRequest, InferResponse, Parameter, RequestedOutput

_RESERVED_PREFIX = "triton_"
_SEQUENCE_TYPES: Mapping[str, tuple[type, ...]] = {
    "sequence_id": (int, str),
    "sequence_start": (bool,),
    "sequence_end": (bool,),
}
_BINARY_ONLY = frozenset({"FP16", "BF16"})
_NOT_CLASSIFIABLE = frozenset({"BOOL", "BYTES"})
_MAX_INT64 = 2**63 - 1


class RequestOptions(msgspec.Struct, frozen=True):
    """A request's parameters, sorted into those with a meaning and the rest."""

    parameters: Mapping[str, Parameter]
    timeout_us: int | None
    priority: int
    is_binary_default: bool


class InputGate:
    """Accepts the inputs of one request one by one, in order, and says at the end whether they are complete."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._missing = {tensor.name: tensor for tensor in spec.inputs}
        self._batch_size: int | None = None

    def accept(self, field_path: str, name: str, datatype: str, shape: Sequence[int]) -> int:
        """The number of elements the input must bring. Raises InvalidInput for an unknown or repeated name, another
        datatype, a shape the model does not take, or a batch size that differs from the other inputs'.
        """
        tensor = self._missing.pop(name, None)
        if tensor is None:
            raise self._unknown(field_path, name)
        if datatype != tensor.datatype:
            raise InvalidInput(
                f"{field_path}.datatype is {datatype[:64]!r}; allowed {tensor.datatype} for input {name!r}",
                field=f"{field_path}.datatype",
            )
        if not self._takes(shape, tensor.shape):
            raise InvalidInput(
                f"{field_path}.shape is {str(list(shape))[:128]}; allowed {self._allowed_shape(tensor)}",
                field=f"{field_path}.shape",
            )
        return num_elements(shape, field_path)

    def batch_size(self) -> int | None:
        """The batch size all inputs agree on; None without a batch dimension. Raises InvalidInput for a missing one."""
        lacking = [tensor.name for tensor in self._missing.values() if not tensor.is_optional]
        if lacking:
            needed = [tensor.name for tensor in self._spec.inputs if not tensor.is_optional]
            raise InvalidInput(
                f"inputs lack {_listed(lacking)}; model {self._spec.name!r} needs {_listed(needed)}", field="inputs"
            )
        if self._batch_size is None and self._spec.max_batch_size > 0:
            raise InvalidInput("inputs is empty; allowed at least one, it says the batch size", field="inputs")
        return self._batch_size

    def _unknown(self, field_path: str, name: str) -> InvalidInput:
        names = [tensor.name for tensor in self._spec.inputs]
        problem = "a repeated input" if name in names else "no input of the model"
        return InvalidInput(
            f"{field_path}.name is {name[:64]!r}, {problem}; allowed each of {_listed(names)} once",
            field=f"{field_path}.name",
        )

    def _takes(self, shape: Sequence[int], wanted: tuple[int, ...]) -> bool:
        if self._spec.max_batch_size == 0:
            return _dims_fit(tuple(shape), wanted)
        return len(shape) > 0 and _dims_fit(tuple(shape[1:]), wanted) and self._takes_batch(shape[0])

    def _takes_batch(self, size: int) -> bool:
        if self._batch_size is None and 1 <= size <= self._spec.max_batch_size:
            self._batch_size = size
        return size == self._batch_size

    def _allowed_shape(self, tensor: TensorSpec) -> str:
        dims = ["any" if dim == -1 else str(dim) for dim in tensor.shape]
        if self._batch_size is not None:
            dims.insert(0, f"{self._batch_size} (as the inputs before it)")
        elif self._spec.max_batch_size > 0:
            dims.insert(0, f"1 to {self._spec.max_batch_size}")
        return f"[{', '.join(dims)}]"


def request_options(parameters: Mapping[str, Any]) -> RequestOptions:
    """Sorts the request's parameters. Raises InvalidInput for a reserved name or a value of the wrong type."""
    if not parameters:
        return _NO_OPTIONS
    kept = dict(parameters)
    is_binary = kept.pop("binary_data_output", False)
    _check_type(is_binary, "binary_data_output", (bool,))
    timeout_us = _unsigned(kept.pop("timeout"), "timeout") if "timeout" in kept else 0
    priority = _unsigned(kept.pop("priority"), "priority") if "priority" in kept else 0
    kept.pop(
        "triton_enable_empty_final_response", None
    )  # asked by every streaming client; here each answer is the last
    for name, value in kept.items():
        if name.startswith(_RESERVED_PREFIX) or name == "headers":
            raise InvalidInput(
                f"parameters.{name[:64]} is a reserved name; allowed any other name", field=f"parameters.{name[:64]}"
            )
        _check_type(value, name[:64], _SEQUENCE_TYPES.get(name, (bool, int, float, str)))
    return RequestOptions(kept, timeout_us or None, priority, is_binary)


def requested_outputs(
    spec: ModelSpec, wanted: Sequence[RequestedOutput], is_binary: bool
) -> tuple[RequestedOutput, ...]:
    """What to send: `wanted`, or every output of the model when that is empty. Raises InvalidInput for an unknown or
    repeated name, FP16 and BF16 asked for as JSON, and classes of an output that has none.
    """
    if not wanted:
        wanted = [RequestedOutput(tensor.name, is_binary) for tensor in spec.outputs]
        if is_binary or _BINARY_ONLY.isdisjoint([tensor.datatype for tensor in spec.outputs]):
            return tuple(wanted)  # nothing in it can be wrong
    datatypes = {tensor.name: tensor.datatype for tensor in spec.outputs}
    for index, output in enumerate(wanted):
        datatype = datatypes.pop(output.name, None)
        if datatype is None:
            raise InvalidInput(
                f"outputs[{index}].name is {output.name[:64]!r}; "
                f"allowed each of {_listed(tensor.name for tensor in spec.outputs)} once",
                field=f"outputs[{index}].name",
            )
        if output.num_classes or datatype in _BINARY_ONLY:
            _check_form(index, output, datatype)
    return tuple(wanted)


def refuse_shared_memory(field_path: str) -> Unsupported:
    """The answer to a tensor that lives in a shared memory region."""
    return Unsupported(
        f"{field_path}.parameters.shared_memory_region is set; shared memory regions are not offered by this server, "
        "send the tensor in the request and take it from the answer"
    )


def answer_tensors(response: InferResponse, request: InferRequest) -> Iterator[tuple[RequestedOutput, str, Tensor]]:
    """What the client asked for, in its order: (output, OIP datatype, tensor), best classes instead of scores where it
    asked for those. Raises Internal when the model did not give an output it declares.
    """
    for output in request.outputs:
        tensor = response.outputs.get(output.name)
        if tensor is None:
            raise Internal
        if output.num_classes:
            labels = response.labels.get(output.name, ())
            tensor = top_classes(tensor, output.num_classes, labels, is_batched=request.batch_size is not None)
        yield output, datatype_of(tensor), tensor


def _dims_fit(dims: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return dims == wanted or (  # the comparison of tuples alone takes a fifth of the time
        len(dims) == len(wanted)
        and all(got == dim or (dim == -1 and got >= 0) for got, dim in zip(dims, wanted, strict=True))
    )


def _check_form(index: int, output: RequestedOutput, datatype: str) -> None:
    if output.num_classes and datatype in _NOT_CLASSIFIABLE:
        raise InvalidInput(
            f"outputs[{index}].parameters.classification is set for a {datatype} output; allowed for numbers only",
            field=f"outputs[{index}].parameters.classification",
        )
    if not (output.is_binary or output.num_classes) and datatype in _BINARY_ONLY:
        raise InvalidInput(
            f"outputs[{index}].parameters.binary_data is not true for {output.name!r}; "
            f"allowed true only, {datatype} has no JSON form",
            field=f"outputs[{index}].parameters.binary_data",
        )


def _unsigned(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INT64:
        raise InvalidInput(
            f"parameters.{name} is {reprlib.repr(value)}; allowed an integer from 0 to {_MAX_INT64}",
            field=f"parameters.{name}",
        )
    return value


def _check_type(value: Any, name: str, types: tuple[type, ...]) -> None:
    if type(value) not in types:
        allowed = " or ".join(kind.__name__ for kind in types)
        raise InvalidInput(
            f"parameters.{name} is {reprlib.repr(value)}; allowed a value of type {allowed}",
            field=f"parameters.{name}",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


_NO_OPTIONS = RequestOptions({}, None, 0, False)
