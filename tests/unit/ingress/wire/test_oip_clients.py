"""The unmodified tritonclient's own encoders and decoders against the codecs, without a server."""

from __future__ import annotations

import gzip
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc._utils import _get_inference_request as grpc_request
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from serve.backends.base import Tensor
from serve.ingress.wire import oip_grpc, oip_http
from serve.ingress.wire.content_encoding import compress, decompress
from serve.ingress.wire.oip_tensors import DTYPES
from serve.pipelines.infer.contract import InferResponse
from tests.unit.ingress.wire.oip_cases import JSON_DATATYPES, TREES, assert_same, model, object_array, shapes, tensors

ROW = np.array([[0.1, np.nan, 3]], dtype=np.float32)
SCORES = np.array([[0.1, 0.2, 0.6, 0.1]], dtype=np.float32)


def http_call(tensor: Tensor, datatype: str, *, is_binary: bool) -> Tensor | None:
    """The tensor sent by the HTTP client, decoded, echoed as the output, and read by the client."""
    sent = triton_http.InferInput("in0", list(tensor.shape), datatype)
    sent.set_data_from_numpy(tensor, binary_data=is_binary)
    wanted = [triton_http.InferRequestedOutput("out0", binary_data=is_binary)]
    body, length = triton_http.InferenceServerClient.generate_request_body([sent], outputs=wanted)
    request = oip_http.decode_infer(body, length, model(datatype))
    assert_same(request.inputs["in0"], tensor)
    parts, length = oip_http.encode_infer(InferResponse("m", "1", {"out0": request.inputs["in0"]}), request)
    result = triton_http.InferenceServerClient.parse_response_body(b"".join(parts), header_length=length)
    got: Tensor | None = result.as_numpy("out0")
    return got


def client_request(**options: Any) -> ModelInferRequest:
    defaults = {
        "model_name": "trees",
        "inputs": [],
        "model_version": "",
        "request_id": "",
        "outputs": None,
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "parameters": None,
    }
    return ModelInferRequest.FromString(grpc_request(**{**defaults, **options}).SerializeToString())


def grpc_input(name: str, tensor: Tensor, datatype: str) -> triton_grpc.InferInput:
    sent = triton_grpc.InferInput(name, list(tensor.shape), datatype)
    sent.set_data_from_numpy(tensor)
    return sent


@settings(max_examples=50)
@given(data=st.data(), shape=shapes, datatype=st.sampled_from(sorted(DTYPES)))
def test_the_http_client_understands_binary_tensors(data: st.DataObject, shape: tuple[int, ...], datatype: str) -> None:
    tensor = data.draw(tensors(datatype, shape))
    got = http_call(tensor, datatype, is_binary=True)
    assert got is not None
    assert_same(got, tensor)


@settings(max_examples=50)
@given(data=st.data(), shape=shapes, datatype=st.sampled_from(JSON_DATATYPES))
def test_the_http_client_understands_json_tensors(data: st.DataObject, shape: tuple[int, ...], datatype: str) -> None:
    tensor = data.draw(tensors(datatype, shape, is_text=True))
    got = http_call(tensor, datatype, is_binary=False)
    assert got is not None
    # The client reads JSON strings as text, as it does from Triton.
    assert_same(object_array([text.encode() for text in got.ravel()], shape) if datatype == "BYTES" else got, tensor)


@settings(max_examples=50)
@given(data=st.data(), shape=shapes, datatype=st.sampled_from(sorted(DTYPES)))
def test_the_grpc_client_understands_tensors(data: st.DataObject, shape: tuple[int, ...], datatype: str) -> None:
    tensor = data.draw(tensors(datatype, shape))
    message = client_request(
        inputs=[grpc_input("in0", tensor, datatype)], outputs=[triton_grpc.InferRequestedOutput("out0")]
    )
    request = oip_grpc.decode_infer(message, model(datatype))
    assert_same(request.inputs["in0"], tensor)
    answer = oip_grpc.encode_infer(InferResponse("m", "1", {"out0": request.inputs["in0"]}), request)
    result = triton_grpc.InferResult(ModelInferResponse.FromString(answer))
    assert_same(result.as_numpy("out0"), tensor)


def test_the_http_clients_options_arrive() -> None:
    sent = triton_http.InferInput("input__0", [1, 3], "FP32").set_data_from_numpy(ROW)
    body, length = triton_http.InferenceServerClient.generate_request_body(
        [sent], request_id="r1", sequence_id=9, sequence_start=True, priority=3, timeout=250, parameters={"tenant": "a"}
    )
    request = oip_http.decode_infer(body, length, TREES)
    assert (request.id, request.priority, request.timeout_us) == ("r1", 3, 250)
    assert request.parameters == {"sequence_id": 9, "sequence_start": True, "sequence_end": False, "tenant": "a"}
    assert request.outputs[0].is_binary  # the client named no output: it asks for all of them in binary


def test_the_grpc_clients_options_arrive() -> None:
    message = client_request(
        inputs=[grpc_input("input__0", ROW, "FP32")],
        request_id="r1",
        sequence_id="s",
        sequence_end=True,
        priority=3,
        timeout=250,
        parameters={"tenant": "a", "ratio": 0.5, "flag": True, "count": 2},
    )
    request = oip_grpc.decode_infer(message, TREES)
    assert (request.id, request.priority, request.timeout_us) == ("r1", 3, 250)
    assert request.parameters == {
        "sequence_id": "s",
        "sequence_start": False,
        "sequence_end": True,
        "tenant": "a",
        "ratio": 0.5,
        "flag": True,
        "count": 2,
    }


@pytest.mark.parametrize("is_binary", [True, False])
def test_the_http_client_reads_classes(is_binary: bool) -> None:
    sent = triton_http.InferInput("input__0", [1, 3], "FP32").set_data_from_numpy(ROW)
    wanted = [triton_http.InferRequestedOutput("output__0", binary_data=is_binary, class_count=2)]
    body, length = triton_http.InferenceServerClient.generate_request_body([sent], outputs=wanted)
    response = InferResponse("trees", "3", {"output__0": SCORES}, labels={"output__0": ["a", "b", "c"]})
    parts, length = oip_http.encode_infer(response, oip_http.decode_infer(body, length, TREES))
    result = triton_http.InferenceServerClient.parse_response_body(b"".join(parts), header_length=length)
    got = [text if isinstance(text, bytes) else text.encode() for text in result.as_numpy("output__0")[0]]
    assert got == [b"0.600000:2:c", b"0.200000:1:b"]


def test_the_grpc_client_reads_classes() -> None:
    message = client_request(
        inputs=[grpc_input("input__0", ROW, "FP32")],
        outputs=[triton_grpc.InferRequestedOutput("output__0", class_count=2)],
    )
    answer = oip_grpc.encode_infer(
        InferResponse("trees", "3", {"output__0": SCORES}), oip_grpc.decode_infer(message, TREES)
    )
    got = triton_grpc.InferResult(ModelInferResponse.FromString(answer)).as_numpy("output__0")
    assert got.tolist() == [[b"0.600000:2", b"0.200000:1"]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_http_client_reads_numbers_json_does_not_have(value: float) -> None:
    tensor = np.full((1, 1, 2), value, dtype=np.float32)
    got = http_call(tensor, "FP32", is_binary=False)
    assert got is not None
    assert_same(got, tensor)


def test_bf16_is_what_the_client_calls_bf16() -> None:
    tensor = np.array([[[1.5, -2.0]]], dtype=ml_dtypes.bfloat16)
    got = http_call(tensor, "BF16", is_binary=True)
    assert got is not None
    assert_same(got, tensor)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_http_client_reads_a_compressed_answer(encoding: str) -> None:
    sent = triton_http.InferInput("input__0", [1, 3], "FP32").set_data_from_numpy(ROW)
    body, length = triton_http.InferenceServerClient.generate_request_body([sent])
    request = oip_http.decode_infer(decompress(gzip.compress(body), "gzip", 10_000), length, TREES)
    parts, length = oip_http.encode_infer(InferResponse("trees", "3", {"output__0": SCORES}), request)
    result = triton_http.InferenceServerClient.parse_response_body(
        compress(parts, encoding), header_length=length, content_encoding=encoding
    )
    assert_same(result.as_numpy("output__0"), SCORES)
