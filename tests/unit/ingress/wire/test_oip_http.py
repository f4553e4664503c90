from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.errors import Internal, InvalidInput, Unsupported
from serve.ingress.wire.oip_http import decode_infer, encode_infer
from serve.ingress.wire.oip_tensors import DTYPES
from serve.pipelines.infer.contract import InferRequest, InferResponse, RequestedOutput
from tests.unit.ingress.wire.oip_cases import JSON_DATATYPES, TREES, assert_same, model, shapes, tensors

X = {"name": "input__0", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
BINARY_X = {"name": "input__0", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
ROW = np.array([[1, 2, 3]], dtype=np.float32)


def body(inputs: object = (X,), **rest: object) -> bytes:
    return json.dumps({"inputs": inputs, **rest}).encode()


def decode(inputs: object = (X,), **rest: object) -> InferRequest:
    return decode_infer(body(inputs, **rest), None, TREES)


def with_binary(header: bytes, *raw: bytes) -> tuple[bytes, int]:
    return b"".join([header, *raw]), len(header)


def answer(outputs: dict[str, Tensor], request: InferRequest, **rest: Any) -> tuple[Any, list[bytes], int | None]:
    parts, header_length = encode_infer(InferResponse("m", "1", outputs, **rest), request)
    return json.loads(parts[0]), parts[1:], header_length


def test_a_json_request_becomes_its_values() -> None:
    request = decode(id="r1", parameters={"timeout": 5000, "priority": 2, "tenant": "a", "sequence_id": 7})
    assert_same(request.inputs["input__0"], ROW)
    assert (request.id, request.timeout_us, request.priority, request.batch_size) == ("r1", 5000, 2, 1)
    assert request.parameters == {"tenant": "a", "sequence_id": 7}
    assert request.outputs == (RequestedOutput("output__0", is_binary=False),)


def test_a_timeout_of_zero_is_none() -> None:
    assert decode(parameters={"timeout": 0}).timeout_us is None


@settings(max_examples=50)
@given(data=st.data(), shape=shapes)
def test_tensors_of_every_json_datatype_survive_json(data: st.DataObject, shape: tuple[int, ...]) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(JSON_DATATYPES), min_size=1, max_size=3))
    check_round_trip(data, datatypes, shape, is_binary=False)


@settings(max_examples=50)
@given(data=st.data(), shape=shapes)
def test_tensors_of_every_datatype_survive_binary(data: st.DataObject, shape: tuple[int, ...]) -> None:
    datatypes = data.draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3))
    check_round_trip(data, datatypes, shape, is_binary=True)


def check_round_trip(data: st.DataObject, datatypes: list[str], shape: tuple[int, ...], *, is_binary: bool) -> None:
    """What the encoder writes as outputs, read back by the decoder as inputs, is what went in."""
    spec = model(*datatypes)
    wanted = [data.draw(tensors(name, shape, is_text=not is_binary)) for name in datatypes]
    outputs = {f"out{index}": tensor for index, tensor in enumerate(wanted)}
    request = InferRequest({}, tuple(RequestedOutput(name, is_binary) for name in outputs), batch_size=shape[0])
    message, raw, header_length = answer(outputs, request)
    assert (header_length is None) == (not is_binary)
    inputs = [{**entry, "name": f"in{index}"} for index, entry in enumerate(message["outputs"])]
    header = body(inputs, parameters={"binary_data_output": True})
    got = decode_infer(b"".join([header, *raw]), len(header) if is_binary else None, spec)
    assert got.batch_size == shape[0]
    for index, tensor in enumerate(wanted):
        assert_same(got.inputs[f"in{index}"], tensor)


def test_binary_tensors_are_views_of_the_body() -> None:
    header = body([BINARY_X])
    header += b" " * (-len(header) % 4)
    raw, length = with_binary(header, ROW.tobytes())
    tensor = decode_infer(raw, length, TREES).inputs["input__0"]
    assert np.shares_memory(tensor, np.frombuffer(raw, np.uint8))
    assert not tensor.flags.writeable


def test_a_body_may_be_a_memoryview() -> None:
    raw, length = with_binary(body([BINARY_X]), ROW.tobytes())
    assert_same(decode_infer(memoryview(raw), length, TREES).inputs["input__0"], ROW)
    assert_same(decode_infer(memoryview(body()), None, TREES).inputs["input__0"], ROW)


def test_nan_and_infinity_literals_are_read() -> None:
    text = b'{"inputs":[{"name":"input__0","shape":[1,3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}'
    got = decode_infer(text, None, TREES).inputs["input__0"]
    assert_same(got, np.array([[np.nan, np.inf, -np.inf]], dtype=np.float32))


@pytest.mark.parametrize(
    ("default", "wish", "is_binary"),
    [(None, None, False), (True, None, True), (False, True, True), (True, False, False), (None, True, True)],
)
def test_an_outputs_own_wish_wins_over_the_requests(default: bool | None, wish: bool | None, is_binary: bool) -> None:
    output = {"name": "output__0"} | ({} if wish is None else {"parameters": {"binary_data": wish}})
    parameters = {} if default is None else {"binary_data_output": default}
    assert decode(outputs=[output], parameters=parameters).outputs[0].is_binary is is_binary


def test_an_answer_carries_what_was_asked_for_in_that_order() -> None:
    spec = model("FP32", "INT8")
    request = InferRequest({}, (RequestedOutput("out1", False), RequestedOutput("out0")), id="r1", batch_size=1)
    outputs = {"out0": ROW, "out1": np.array([[1, 2]], dtype=np.int8)}
    message, raw, length = answer(outputs, request, parameters={"degraded": True})
    assert message == {
        "model_name": "m",
        "model_version": "1",
        "id": "r1",
        "parameters": {"degraded": True},
        "outputs": [
            {"name": "out1", "datatype": "INT8", "shape": [1, 2], "data": [1, 2]},
            {"name": "out0", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
        ],
    }
    assert raw == [ROW.tobytes()]
    assert length is not None
    assert spec.outputs[0].name in message["outputs"][1]["name"]


def test_classes_are_bytes_in_the_asked_form() -> None:
    scores = {"output__0": np.array([[0.1, 0.7, 0.2, 0.0]], dtype=np.float32)}
    outputs = [{"name": "output__0", "parameters": {"classification": 2}}]
    message, _, _ = answer(scores, decode(outputs=outputs), labels={"output__0": ["a", "b", "c", "d"]})
    assert message["outputs"] == [
        {"name": "output__0", "datatype": "BYTES", "shape": [1, 2], "data": ["0.700000:1:b", "0.200000:2:c"]}
    ]


def test_an_output_the_model_did_not_give_is_our_bug() -> None:
    with pytest.raises(Internal):
        answer({}, decode())


def test_a_raw_body_is_the_only_input_and_answers_in_binary() -> None:
    request = decode_infer(ROW.tobytes(), 0, TREES)
    assert_same(request.inputs["input__0"], ROW)
    assert request.outputs == (RequestedOutput("output__0", is_binary=True),)


def test_a_raw_body_fills_the_one_variable_dimension() -> None:
    spec = model("INT16")
    assert decode_infer(bytes(12), 0, spec).inputs["in0"].shape == (1, 3, 2)
    assert decode_infer(b"", 0, spec).inputs["in0"].shape == (1, 0, 2)
    assert decode_infer(bytes(12), 0, model("INT16", max_batch_size=0)).inputs["in0"].shape == (3, 2)
    with pytest.raises(InvalidInput, match="has 13 bytes"):
        decode_infer(bytes(13), 0, spec)


def test_a_raw_bytes_body_is_one_element() -> None:
    request = decode_infer(b"\x00text", 0, model("BYTES", dims=(1,)))
    assert request.inputs["in0"].tolist() == [[b"\x00text"]]


@pytest.mark.parametrize(
    "spec", [model("FP32", "FP32"), model("FP32", dims=(-1, -1)), model("BYTES", dims=(2,)), model("BYTES")]
)
def test_a_raw_body_needs_a_model_whose_shape_it_can_give(spec: ModelSpec) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_infer(bytes(8), 0, spec)
    assert caught.value.field == "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"name": "x"}, "inputs[0].name", "is 'x', no input of the model; allowed each of 'input__0' once"),
        ({"name": 5}, "inputs[0].name", "is 5; allowed: str"),
        ({"datatype": "FP64"}, "inputs[0].datatype", "is 'FP64'; allowed FP32"),
        ({"shape": [3]}, "inputs[0].shape", r"is \[3\]; allowed \[1 to 8, 3\]"),
        ({"shape": []}, "inputs[0].shape", r"allowed \[1 to 8, 3\]"),
        ({"shape": [0, 3]}, "inputs[0].shape", r"allowed \[1 to 8, 3\]"),
        ({"shape": [9, 3]}, "inputs[0].shape", r"is \[9, 3\]; allowed \[1 to 8, 3\]"),
        ({"shape": [-1, -3]}, "inputs[0].shape", r"allowed \[1 to 8, 3\]"),
        ({"shape": [2**62, 2**62]}, "inputs[0].shape", r"allowed \[1 to 8, 3\]"),
        ({"shape": "1x3"}, "inputs[0].shape", "allowed: a list of integers"),
        ({"shape": [1, 3.5]}, "inputs[0].shape[1]", "is 3.5"),
        ({"data": [1, 2]}, "inputs[0].data", "has 2 elements; allowed exactly 3"),
        ({"data": [1, 2, "3"]}, "inputs[0].data[2]", "got `str`"),
        ({"data": None}, "inputs[0].data", "absent"),
        ({"parameters": {"binary_data_size": -1}}, "inputs[0].parameters.binary_data_size", "allowed: an integer"),
        ({"parameters": {"binary_data_size": 12}}, "inputs[0].parameters.binary_data_size", "up to the 0 bytes left"),
        ({"parameters": {"binary_data_size": 0}}, "inputs[0].data", "both data and binary_data_size"),
    ],
)
def test_a_wrong_input_names_field_got_and_allowed(changes: dict[str, object], field: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        decode([{**X, **changes}])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("rest", "field"),
    [
        ({"outputs": [{"name": "y"}]}, "outputs[0].name"),
        ({"outputs": [{"name": "output__0"}] * 2}, "outputs[1].name"),
        ({"outputs": [{}]}, "outputs[0].name"),
        ({"outputs": [{"name": "output__0", "parameters": {"binary_data": 1}}]}, "outputs[0].parameters.binary_data"),
        (
            {"outputs": [{"name": "output__0", "parameters": {"classification": -1}}]},
            "outputs[0].parameters.classification",
        ),
        ({"parameters": {"timeout": -1}}, "parameters.timeout"),
        ({"parameters": {"timeout": 2**63}}, "parameters.timeout"),
        ({"parameters": {"timeout": "5"}}, "parameters.timeout"),
        ({"parameters": {"priority": True}}, "parameters.priority"),
        ({"parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"parameters": {"sequence_start": 1}}, "parameters.sequence_start"),
        ({"parameters": {"triton_x": 1}}, "parameters.triton_x"),
        ({"parameters": {"headers": "a"}}, "parameters.headers"),
        ({"parameters": {"a": None}}, "parameters.a"),
        ({"parameters": {"a": [[]]}}, "parameters.a"),
        ({"parameters": []}, "parameters"),
        ({"id": 5}, "id"),
    ],
)
def test_a_wrong_request_names_its_field(rest: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(**rest)
    assert caught.value.field == field


def test_missing_and_repeated_inputs_are_named() -> None:
    with pytest.raises(InvalidInput, match="inputs lack 'input__0'"):
        decode([])
    with pytest.raises(InvalidInput, match="repeated input") as caught:
        decode([X, X])
    assert caught.value.field == "inputs[1].name"


def test_optional_inputs_may_be_left_out_but_not_all_of_them() -> None:
    optional = TensorSpec("note", "BYTES", (1,), is_optional=True)
    spec = ModelSpec("m", "1", "p", "b", BATCH, (*TREES.inputs, optional), TREES.outputs)
    assert set(decode_infer(body(), None, spec).inputs) == {"input__0"}
    with pytest.raises(InvalidInput, match=r"inputs lack 'input__0'; model 'm' needs 'input__0'$"):
        decode_infer(body([]), None, spec)
    with pytest.raises(InvalidInput, match="inputs is empty"):
        decode_infer(body([]), None, ModelSpec("m", "1", "p", "b", BATCH, (optional,), TREES.outputs))


def test_inputs_of_one_request_have_one_batch_size() -> None:
    spec = model("INT8", "INT8", dims=(1,))
    inputs = [
        {"name": f"in{index}", "shape": [size, 1], "datatype": "INT8", "data": [0] * size}
        for index, size in enumerate((2, 3))
    ]
    with pytest.raises(InvalidInput, match=r"allowed \[2 \(as the inputs before it\), 1\]") as caught:
        decode_infer(body(inputs), None, spec)
    assert caught.value.field == "inputs[1].shape"


def test_a_model_without_batches_takes_its_own_shape_only() -> None:
    spec = ModelSpec("m", "1", "p", "b", 0, (TensorSpec("input__0", "FP32", (1, -1)),), ())
    assert decode_infer(body(), None, spec).batch_size is None
    with pytest.raises(InvalidInput, match=r"allowed \[1, any\]"):
        decode_infer(body([{**X, "shape": [3]}]), None, spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"inputs":[]} x', "not JSON"),
        (b"[]", r"the body is \[\]"),
        (b"{}", "inputs is missing"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inputs":' + b"[" * 100_000, "nested too deeply"),
        (b'{"inputs":[{"name":"\xff"}]}', "not JSON in UTF-8"),
        (b'{"inputs":[],"id":"\\ud800","x":NaN}', "not JSON in UTF-8"),
        (b'{"inputs":[],"x":NaN,"id":1}', "id is"),
    ],
)
def test_a_body_that_is_no_request_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode_infer(text, None, TREES)


@pytest.mark.parametrize("header_length", [-1, 10_000])
def test_a_header_length_outside_the_body_is_refused(header_length: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_infer(body(), header_length, TREES)
    assert caught.value.field == "Inference-Header-Content-Length"


def test_bytes_that_no_tensor_claims_are_refused() -> None:
    raw, length = with_binary(body([BINARY_X]), ROW.tobytes(), b"\x00")
    with pytest.raises(InvalidInput, match="has 1 bytes after the last tensor"):
        decode_infer(raw, length, TREES)


def test_fp16_and_bf16_outputs_are_binary_only() -> None:
    for datatype in ("FP16", "BF16"):
        spec = ModelSpec("m", "1", "p", "b", BATCH, TREES.inputs, (TensorSpec("y", datatype, (1,)),))
        with pytest.raises(InvalidInput, match="no JSON form"):
            decode_infer(body(), None, spec)
        assert decode_infer(body(parameters={"binary_data_output": True}), None, spec).outputs[0].is_binary


BATCH = TREES.max_batch_size


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES"])
def test_classes_are_of_numbers_only(datatype: str) -> None:
    spec = ModelSpec("m", "1", "p", "b", BATCH, TREES.inputs, (TensorSpec("y", datatype, (1,)),))
    with pytest.raises(InvalidInput, match="allowed for numbers only"):
        decode_infer(body(outputs=[{"name": "y", "parameters": {"classification": 1}}]), None, spec)


def test_shared_memory_is_understood_and_not_offered() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
    with pytest.raises(Unsupported, match=r"inputs\[0\].*shared memory regions are not offered"):
        decode([{**X, "data": None, "parameters": region}])
    with pytest.raises(Unsupported, match=r"outputs\[0\].*shared memory regions are not offered"):
        decode(outputs=[{"name": "output__0", "parameters": region}])
