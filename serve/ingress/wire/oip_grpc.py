"""The Open Inference Protocol's infer messages over gRPC.

A ModelInferRequest enters and an `InferRequest` leaves; an `InferResponse` enters and a ModelInferResponse leaves.
Called by the gRPC listener. The message classes are tritonclient's: a second copy in one process would clash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc.service_pb2 import InferParameter, ModelInferRequest, ModelInferResponse

from serve.backends.base import ModelSpec, Tensor
from serve.errors import InvalidInput
from serve.ingress.wire.oip import (
    InputGate,
    answer_tensors,
    refuse_shared_memory,
    request_options,
    requested_outputs,
)
from serve.ingress.wire.oip_layouts import Layout, raw_outputs
from serve.ingress.wire.oip_tensors import datatype_of, tensor_from_bytes, tensor_from_numbers, tensor_to_bytes
from serve.pipelines.infer.contract import InferRequest, InferResponse, Parameter, RequestedOutput

# Where a datatype's elements are in InferTensorContents; FP16 and BF16 come in raw_input_contents only.
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_MAX_CLASSES = 2**31 - 1


def decode_infer(message: ModelInferRequest, spec: ModelSpec) -> InferRequest:
    """Reads one infer request for the model of `spec`. Tensors are views of the message's bytes where they can be.

    Raises InvalidInput naming the field, and Unsupported for shared memory.
    """
    # Asking an empty repeated field for its length takes 0.1 µs, going through it 0.7 µs.
    options = request_options(_parameters(message.parameters, "parameters") if message.parameters else {})
    inputs, batch_size = _decode_inputs(message, spec)
    wanted = [_requested(index, output) for index, output in enumerate(message.outputs)] if message.outputs else []
    return InferRequest(
        inputs,
        requested_outputs(spec, wanted, True),
        message.id,
        options.parameters,
        options.timeout_us,
        options.priority,
        batch_size,
    )


def encode_infer(response: InferResponse, request: InferRequest, layout: Layout | None = None) -> bytes:
    """The answer; every tensor is in raw_output_contents, because clients read numbers only from there.

    `layout` is the request's, if it has one: it remembers what comes before the tensors.
    """
    if layout is None or response.parameters:
        head, answers = _answer_head(response, request)
    else:
        answers = [tensor for _, _, tensor in answer_tensors(response, request)]
        head = layout.answer_head(response.model_version, answers) or b""
        if not head:
            head, answers = _answer_head(response, request)
            layout.remember_answer(response.model_version, answers, head)
    return raw_outputs(head, [tensor_to_bytes(tensor, datatype_of(tensor)) for tensor in answers])


def _answer_head(response: InferResponse, request: InferRequest) -> tuple[bytes, list[Tensor]]:
    message = ModelInferResponse(model_name=response.model_name, model_version=response.model_version, id=request.id)
    for name, value in response.parameters.items():
        message.parameters[name].CopyFrom(_parameter(value))
    answers = []
    for output, datatype, tensor in answer_tensors(response, request):
        message.outputs.add(name=output.name, datatype=datatype, shape=tensor.shape)
        answers.append(tensor)
    return message.SerializeToString(), answers


def _decode_inputs(message: ModelInferRequest, spec: ModelSpec) -> tuple[dict[str, Tensor], int | None]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} entries; allowed one for each of the {len(message.inputs)} inputs",
            field="raw_input_contents",
        )
    gate = InputGate(spec)
    tensors: dict[str, Tensor] = {}
    for index, entry in enumerate(message.inputs):
        path = f"inputs[{index}]"
        if "shared_memory_region" in entry.parameters:
            raise refuse_shared_memory(path)
        shape = entry.shape[:]
        count = gate.accept(path, entry.name, entry.datatype, shape)
        if not raw:
            tensors[entry.name] = _from_contents(entry, shape, count, path)
        elif entry.HasField("contents"):
            raise InvalidInput(
                f"{path}.contents is set beside raw_input_contents; allowed one of them", field=f"{path}.contents"
            )
        else:
            tensors[entry.name] = tensor_from_bytes(memoryview(raw[index]), entry.datatype, shape, count, path)
    return tensors, gate.batch_size()


def _from_contents(entry: Any, shape: Sequence[int], count: int, path: str) -> Tensor:
    kind = _CONTENTS.get(entry.datatype)
    if kind is None:
        raise InvalidInput(
            f"{path}.contents cannot hold {entry.datatype}; allowed in raw_input_contents only",
            field=f"{path}.contents",
        )
    return tensor_from_numbers(getattr(entry.contents, kind), entry.datatype, shape, count, f"{path}.contents.{kind}")


def _requested(index: int, output: Any) -> RequestedOutput:
    path = f"outputs[{index}].parameters"
    parameters = _parameters(output.parameters, path)
    if "shared_memory_region" in parameters:
        raise refuse_shared_memory(f"outputs[{index}]")
    num_classes = parameters.get("classification", 0)
    if type(num_classes) is not int or not 0 <= num_classes <= _MAX_CLASSES:
        raise InvalidInput(
            f"{path}.classification is {str(num_classes)[:64]!r}; allowed an integer from 0 to {_MAX_CLASSES}",
            field=f"{path}.classification",
        )
    return RequestedOutput(output.name, num_classes=num_classes)


def _parameters(parameters: Mapping[str, InferParameter], path: str) -> dict[str, Parameter]:
    values: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(
                f"{path}.{name[:64]} has no value; allowed a bool, int64, uint64, double or string",
                field=f"{path}.{name[:64]}",
            )
        values[name] = getattr(parameter, kind)
    return values


def _parameter(value: Parameter) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value)
    if isinstance(value, float):
        return InferParameter(double_param=value)
    return InferParameter(string_param=value)
