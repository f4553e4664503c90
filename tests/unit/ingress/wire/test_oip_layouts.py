"""A message read by its layout is the message that parsing reads; so is the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from serve.backends.base import ModelSpec
from serve.ingress.wire.infer_codecs import GrpcInferCodec, ModelEndpoint
from serve.ingress.wire.oip_grpc import decode_infer, encode_infer
from serve.ingress.wire.oip_layouts import Layouts, varint
from serve.pipelines.infer.contract import Inferred, InferResponse
from tests.unit.ingress.wire.oip_cases import TREES, assert_same, model

PLAIN = ["FP32", "FP64", "INT64", "UINT8", "FP16", "INT16"]
ITEMSIZE = {"FP32": 4, "FP64": 8, "INT64": 8, "UINT8": 1, "FP16": 2, "INT16": 2}


def message(raw: bytes, datatype: str = "FP32", rows: int = 1, **fields: str) -> ModelInferRequest:
    request = ModelInferRequest(**fields)
    request.inputs.add(name="in0", datatype=datatype, shape=(rows, len(raw) // rows // ITEMSIZE[datatype]))
    request.raw_input_contents.append(raw)
    return request


def spec(datatype: str) -> ModelSpec:
    return model(datatype, dims=(-1,))


def remembered(request: ModelInferRequest, of: ModelSpec) -> Layouts:
    layouts = Layouts()
    layouts.remember(request.SerializeToString(), request, decode_infer(request, of))
    return layouts


@settings(max_examples=200)
@given(data=st.data(), datatype=st.sampled_from(PLAIN), rows=st.integers(1, 4), columns=st.integers(1, 5))
def test_numbers_that_differ_are_read_as_parsing_reads_them(
    data: st.DataObject, datatype: str, rows: int, columns: int
) -> None:
    size = rows * columns * ITEMSIZE[datatype]
    fields = {
        "model_name": data.draw(st.text(max_size=5)), "model_version": data.draw(st.sampled_from(["", "1"])),
        "id": data.draw(st.text(max_size=5)),
    }  # fmt: skip
    first = message(data.draw(st.binary(min_size=size, max_size=size)), datatype, rows, **fields)
    second = message(data.draw(st.binary(min_size=size, max_size=size)), datatype, rows, **fields)
    for one in (first, second):
        one.parameters["tenant"].string_param = "a"
    layout = remembered(first, spec(datatype)).find(second.SerializeToString())
    assert layout is not None
    wanted, got = decode_infer(second, spec(datatype)), layout.read(second.SerializeToString())
    assert_same(got.inputs["in0"], wanted.inputs["in0"])
    assert got.inputs["in0"].flags.aligned
    for name in ("outputs", "id", "parameters", "timeout_us", "priority", "batch_size"):
        assert getattr(got, name) == getattr(wanted, name), name


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "model_name", "n"), lambda m: setattr(m, "id", "2"),
        lambda m: m.outputs.add(name="out0"), lambda m: setattr(m.inputs[0], "datatype", "INT32"),
        lambda m: m.inputs[0].shape.__setitem__(0, 2), lambda m: m.raw_input_contents.append(b"1234"),
    ],
)  # fmt: skip
def test_any_other_difference_is_parsed(change) -> None:  # type: ignore[no-untyped-def]
    layouts = remembered(message(bytes(8), model_name="m", id="1"), spec("FP32"))
    other = message(bytes(8), model_name="m", id="1")
    change(other)
    assert layouts.find(other.SerializeToString()) is None


def test_what_is_of_one_time_is_not_remembered() -> None:
    request = message(bytes(8))
    request.parameters["timeout"].int64_param = 5000
    assert remembered(request, spec("FP32")).find(request.SerializeToString()) is None


def test_tensors_that_are_not_last_are_not_remembered() -> None:
    request = message(bytes(8))
    payload = request.SerializeToString()
    swapped = payload[-10:] + payload[:-10]  # raw_input_contents first: legal, and nobody does it
    assert ModelInferRequest.FromString(swapped) == request
    layouts = Layouts()
    layouts.remember(swapped, request, decode_infer(request, spec("FP32")))
    assert layouts.find(swapped) is None


def test_the_answer_is_the_same_and_names_the_version_that_gave_it() -> None:
    codec = GrpcInferCodec(ModelEndpoint(TREES))
    request = ModelInferRequest(model_name="trees", id="7")
    request.inputs.add(name="input__0", datatype="FP32", shape=(1, 3))
    for version in ("3", "4"):
        for k in range(3):
            row = np.array([[k, 2, 3]], np.float32)
            del request.raw_input_contents[:]
            request.raw_input_contents.append(row.tobytes())
            decoded = codec.decode(request.SerializeToString())
            assert_same(decoded.items[0].inputs["input__0"], row)
            response = InferResponse("trees", version, {"output__0": row[:, :2] * 2})
            body = codec.encode(decoded.request, [Inferred(decoded.items[0], response)]).body
            assert ModelInferResponse.FromString(body) == ModelInferResponse.FromString(
                encode_infer(response, decode_infer(request, TREES))
            )
            assert ModelInferResponse.FromString(body).model_version == version


@given(value=st.integers(0, 2**35))
def test_lengths_are_protobufs(value: int) -> None:
    message = ModelInferRequest()
    message.parameters["k"].uint64_param = value
    assert varint(value) in message.SerializeToString() or value == 0
