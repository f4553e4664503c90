"""The protocol's infer as codecs: which model is asked for, how long it may take, and what an endpoint gives back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from serve.errors import InvalidInput, NotFound, TooLarge
from serve.ingress.wire.infer_codecs import GrpcInferCodec, HttpInferCodec, ModelEndpoint, model_of, unknown_model
from serve.pipelines.infer.contract import Inferred, InferResponse
from tests.unit.ingress.wire.fraud_cases import assert_is_useful, http
from tests.unit.ingress.wire.oip_cases import TREES

MAX_BODY = 10_000
HTTP, GRPC = HttpInferCodec(ModelEndpoint(TREES), MAX_BODY), GrpcInferCodec(ModelEndpoint(TREES))
BODY = {"inputs": [{"name": "input__0", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


def message(name: str = "trees", version: str = "", **parameters) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=name, model_version=version)
    tensor = request.inputs.add(name="input__0", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([1, 2, 3])
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request


def answer_of(request) -> Inferred:
    return Inferred(request, InferResponse("trees", "3", {"output__0": np.array([[1, 2, 3, 4]], np.float32)}))


# Which model


@given(st.text(max_size=140), st.text(max_size=140))
def test_name_and_version_are_read_as_a_parser_reads_them(name, version):
    request = message(name, version)
    assert model_of(request.SerializeToString()) == (name, version)


@given(st.text(min_size=1, max_size=20))
def test_name_and_version_are_read_where_they_come_last(name):
    inputs = pb.ModelInferRequest()
    inputs.inputs.extend(message().inputs)
    payload = inputs.SerializeToString() + pb.ModelInferRequest(model_name=name, model_version="2").SerializeToString()
    assert model_of(payload) == (name, "2")


@given(st.binary(max_size=60))
def test_any_bytes_name_a_model_or_are_an_invalid_input(payload):
    try:
        name, version = model_of(payload)
    except InvalidInput as error:
        assert_is_useful(error)
    else:
        assert isinstance(name, str)
        assert isinstance(version, str)


def test_an_unknown_model_is_named_and_a_long_name_cut():
    assert "'x'" in unknown_model("x", "").message
    assert "version 7" in unknown_model("x", "7").message
    assert isinstance(unknown_model("x", ""), NotFound)
    assert len(unknown_model("x" * 10_000, "9" * 10_000).message) < 500


# How long


@pytest.mark.parametrize(
    ("parameters", "timeout_us"),
    [
        ({}, None),
        ({"timeout": 5000}, 5000),
        ({"timeout": 0}, None),
        ({"other": 1}, None),
        ({"timeout": 10**14}, 10**14),
    ],
)
def test_the_timeout_parameter_is_found_over_both_protocols(parameters, timeout_us):
    assert HTTP.timeout_us(http({**BODY, "parameters": parameters})) in (timeout_us, timeout_us or 0)
    assert GRPC.timeout_us(message(**parameters).SerializeToString()) == timeout_us


@pytest.mark.parametrize(
    "text", ['{"parameters":{"timeout":7}}', '{"parameters": {"timeout" :\n7 } }', '{"parameters":{"a":1,"timeout":7}}']
)
def test_the_timeout_is_found_however_it_is_written(text):
    assert HTTP.timeout_us(http(text.encode())) == 7


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{"name": "timeout", "datatype": "FP32", "shape": [1], "data": [5]}]},
        {"id": '"timeout": 5'},
        {"inputs": [{"name": "input__0", "parameters": {"timeout": 5}}]},
        {"parameters": {"timeout": 5.5}},
        {"parameters": {"timeout": "5"}},
        {"parameters": {"timeout": -5}},
        {"parameters": {"timeout": True}},
    ],
    ids=["a tensor's name", "text", "a tensor's parameter", "a fraction", "a string", "negative", "a boolean"],
)
def test_what_only_looks_like_the_timeout_is_not_taken_for_it(body):
    """A deadline of 5 µs would answer 504 to a request that is fine, or hide what is wrong with it."""
    assert HTTP.timeout_us(http(body)) is None


def test_the_timeout_is_looked_for_before_the_binary_tensors_only():
    head = json.dumps({"parameters": {}}).encode()
    body = head + b'"timeout": 5'
    assert HTTP.timeout_us(http(body, inference_header_content_length=str(len(head)).encode())) is None


def test_a_negative_timeout_over_grpc_is_refused_rather_than_called_late():
    payload = message(timeout=-5).SerializeToString()
    try:
        assert GRPC.timeout_us(payload) is None
    except InvalidInput as error:
        assert_is_useful(error, "parameters.timeout")


@pytest.mark.parametrize("value", [b"", b"-1", b"x", b"1.5", b"9" * 13, "²".encode("latin-1"), b" 1", b"1e3"], ids=repr)
def test_a_header_length_that_is_no_number_names_the_header(value):
    for call in (HTTP.timeout_us, HTTP.decode):
        with pytest.raises(InvalidInput) as refused:
            call(http(BODY, inference_header_content_length=value))
        assert refused.value.field == "Inference-Header-Content-Length"


# What an endpoint gives


def test_a_request_is_decoded_as_one_item_and_its_answer_encoded_as_it_asked():
    decoded = HTTP.decode(http(BODY))
    [request] = decoded.items
    assert request.inputs["input__0"].tolist() == [[1, 2, 3]]
    encoded = HTTP.encode(decoded.request, [answer_of(request)])
    assert encoded.content_type == "application/json"
    assert json.loads(encoded.body)["outputs"][0]["data"] == [1, 2, 3, 4]


def test_binary_outputs_come_with_the_length_of_their_header():
    decoded = HTTP.decode(http({**BODY, "parameters": {"binary_data_output": True}}))
    encoded = HTTP.encode(decoded.request, [answer_of(decoded.items[0])])
    assert encoded.content_type == "application/octet-stream"
    length = int(dict(encoded.headers)["inference-header-content-length"])
    assert json.loads(encoded.body[:length])["outputs"][0]["parameters"]["binary_data_size"] == 16
    assert len(encoded.body) == length + 16


def test_the_answer_is_compressed_where_the_client_takes_it():
    import gzip

    decoded = HTTP.decode(http(BODY, accept_encoding=b"gzip"))
    encoded = HTTP.encode(decoded.request, [answer_of(decoded.items[0])])
    assert ("content-encoding", "gzip") in encoded.headers
    assert json.loads(gzip.decompress(encoded.body))["outputs"]


def test_grpc_answers_with_raw_contents():
    decoded = GRPC.decode(message().SerializeToString())
    [request] = decoded.items
    response = pb.ModelInferResponse.FromString(GRPC.encode(decoded.request, [answer_of(request)]).body)
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [1, 2, 3, 4]


def test_an_items_error_is_the_requests_error():
    decoded = GRPC.decode(message().SerializeToString())
    with pytest.raises(TooLarge):
        GRPC.encode(decoded.request, [TooLarge("x")])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_an_invalid_input(payload):
    for codec, given_payload in ((GRPC, payload), (HTTP, http(payload))):
        assert codec.count_items(given_payload) == 1
        for call in (codec.timeout_us, codec.decode):
            try:
                call(given_payload)
            except InvalidInput as error:
                assert_is_useful(error)
