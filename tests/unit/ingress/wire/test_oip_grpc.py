from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from serve.errors import InvalidInput, Unsupported
from serve.ingress.wire.oip_grpc import decode_infer, encode_infer
from serve.ingress.wire.oip_tensors import DTYPES, tensor_to_bytes
from serve.pipelines.infer.contract import InferRequest, InferResponse, RequestedOutput
from tests.unit.ingress.wire.oip_cases import JSON_DATATYPES, TREES, assert_same, model, shapes, tensors

ROW = np.array([[1, 2, 3]], dtype=np.float32)
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
}


def message(shape: tuple[int, ...] = (1, 3), raw: bytes | None = ROW.tobytes()) -> ModelInferRequest:
    request = ModelInferRequest(model_name="trees")
    request.inputs.add(name="input__0", datatype="FP32", shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def test_a_request_becomes_its_values() -> None:
    request = message()
    request.id = "r1"
    request.parameters["timeout"].int64_param = 5000
    request.parameters["priority"].uint64_param = 2
    request.parameters["sequence_id"].string_param = "s"
    request.parameters["tenant"].string_param = "a"
    request.parameters["ratio"].double_param = 0.5
    got = decode_infer(request, TREES)
    assert_same(got.inputs["input__0"], ROW)
    assert (got.id, got.timeout_us, got.priority, got.batch_size) == ("r1", 5000, 2, 1)
    assert got.parameters == {"sequence_id": "s", "tenant": "a", "ratio": 0.5}
    assert got.outputs == (RequestedOutput("output__0", is_binary=True),)


@settings(max_examples=50)
@given(data=st.data(), shape=shapes)
def test_tensors_of_every_datatype_survive_raw_contents(data: st.DataObject, shape: tuple[int, ...]) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    wanted = [data.draw(tensors(name, shape)) for name in datatypes]
    outputs = {f"out{index}": tensor for index, tensor in enumerate(wanted)}
    asked = InferRequest({}, tuple(RequestedOutput(name) for name in outputs), batch_size=shape[0])
    answer = ModelInferResponse.FromString(encode_infer(InferResponse("m", "1", outputs), asked))
    request = ModelInferRequest(raw_input_contents=answer.raw_output_contents)
    for index, output in enumerate(answer.outputs):
        request.inputs.add(name=f"in{index}", datatype=output.datatype, shape=output.shape)
    again = ModelInferRequest.FromString(request.SerializeToString())
    got = decode_infer(again, model(*datatypes)).inputs
    for index, tensor in enumerate(wanted):
        assert_same(got[f"in{index}"], tensor)


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@settings(max_examples=20)
@given(data=st.data(), shape=shapes)
def test_tensors_survive_typed_contents(datatype: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    tensor = data.draw(tensors(datatype, shape))
    request = ModelInferRequest()
    entry = request.inputs.add(name="in0", datatype=datatype, shape=shape)
    getattr(entry.contents, CONTENTS[datatype]).extend(tensor.ravel().tolist())
    assert_same(decode_infer(request, model(datatype)).inputs["in0"], tensor)


def test_classes_and_parameters_are_in_the_answer() -> None:
    request = message()
    request.outputs.add(name="output__0").parameters["classification"].int64_param = 1
    scores = {"output__0": np.array([[0.1, 0.9]], dtype=np.float32)}
    parameters = {"b": True, "i": 7, "d": 0.5, "s": "x"}
    response = InferResponse("trees", "3", scores, parameters)
    answer = ModelInferResponse.FromString(encode_infer(response, decode_infer(request, TREES)))
    assert (answer.model_name, answer.model_version) == ("trees", "3")
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 1])
    assert answer.raw_output_contents == [tensor_to_bytes(np.array([b"0.900000:1"]), "BYTES")]
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in answer.parameters.items()}
    assert kinds == {"b": "bool_param", "i": "int64_param", "d": "double_param", "s": "string_param"}


def test_raw_and_typed_contents_together_are_refused() -> None:
    request = message()
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3])
    with pytest.raises(InvalidInput, match="beside raw_input_contents") as caught:
        decode_infer(request, TREES)
    assert caught.value.field == "inputs[0].contents"


def test_raw_contents_are_one_for_each_input() -> None:
    request = message()
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidInput, match="has 2 entries; allowed one for each of the 1 inputs") as caught:
        decode_infer(request, TREES)
    assert caught.value.field == "raw_input_contents"


def test_typed_contents_in_the_wrong_field_are_named() -> None:
    request = message(raw=None)
    request.inputs[0].contents.fp64_contents.extend([1, 2, 3])
    with pytest.raises(InvalidInput, match="has 0 elements; allowed exactly 3") as caught:
        decode_infer(request, TREES)
    assert caught.value.field == "inputs[0].contents.fp32_contents"


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_raw_only(datatype: str) -> None:
    request = ModelInferRequest()
    request.inputs.add(name="in0", datatype=datatype, shape=(1, 1, 2))
    with pytest.raises(InvalidInput, match="raw_input_contents only"):
        decode_infer(request, model(datatype))


@pytest.mark.parametrize("shape", [(), (3,), (9, 3), (0, 3), (-1, 3), (1, 4), (1, 3, 1), (2**62, 2**62)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"allowed \[1 to 8, 3\]") as caught:
        decode_infer(message(shape), TREES)
    assert caught.value.field == "inputs[0].shape"


def test_wrong_parameters_are_named() -> None:
    request = message()
    request.parameters["tenant"].SetInParent()
    with pytest.raises(InvalidInput) as caught:
        decode_infer(request, TREES)
    assert caught.value.field == "parameters.tenant"
    for value in (-1, 2**40):
        request = message()
        request.outputs.add(name="output__0").parameters["classification"].int64_param = value
        with pytest.raises(InvalidInput) as caught:
            decode_infer(request, TREES)
        assert caught.value.field == "outputs[0].parameters.classification"


def test_shared_memory_is_understood_and_not_offered() -> None:
    request = message(raw=None)
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode_infer(request, TREES)
    request = message()
    request.outputs.add(name="output__0").parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="shared memory"):
        decode_infer(request, TREES)
