from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import Internal, InvalidInput, Unsupported
from serve.ingress.wire.oip_tensors import (
    DTYPES,
    datatype_of,
    num_elements,
    tensor_from_bytes,
    tensor_from_json,
    tensor_from_numbers,
    tensor_to_bytes,
    tensor_to_json,
    top_classes,
)
from tests.unit.ingress.wire.oip_cases import JSON_DATATYPES, assert_same, object_array, shapes, tensors

INTEGERS = [name for name in JSON_DATATYPES if "INT" in name]


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@settings(max_examples=20)
@given(data=st.data(), shape=shapes, offset=st.integers(0, 7))
def test_every_datatype_survives_bytes_at_any_alignment(
    datatype: str, data: st.DataObject, shape: tuple[int, ...], offset: int
) -> None:
    tensor = data.draw(tensors(datatype, shape))
    raw = memoryview(b"\xee" * offset + tensor_to_bytes(tensor, datatype))[offset:]
    got = tensor_from_bytes(raw, datatype, shape, tensor.size, "x")
    assert_same(got, tensor)
    assert got.flags.aligned
    assert got.flags.c_contiguous


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@settings(max_examples=20)
@given(data=st.data(), shape=shapes)
def test_every_json_datatype_survives_json(datatype: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    tensor = data.draw(tensors(datatype, shape, is_text=True))
    text = tensor_to_json(tensor, datatype, "x")
    assert_same(tensor_from_json(json.loads(text), datatype, shape, tensor.size, "x"), tensor)


def test_a_tensor_is_a_view_of_an_aligned_body() -> None:
    body = np.arange(6, dtype=np.float32).tobytes()
    assert np.shares_memory(
        tensor_from_bytes(memoryview(body), "FP32", (2, 3), 6, "x"), np.frombuffer(body, dtype=np.uint8)
    )


def test_any_byte_but_zero_is_true() -> None:
    got = tensor_from_bytes(memoryview(b"\x00\x01\x02\xff"), "BOOL", (4,), 4, "x")
    assert got.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_strided_outputs_are_written_row_major() -> None:
    tensor = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2]
    assert np.frombuffer(tensor_to_bytes(tensor, "INT32"), np.int32).tolist() == [0, 2, 4, 6, 8, 10]
    assert tensor_to_json(tensor, "INT32", "x") == b"[0,2,4,6,8,10]"


def test_text_arrays_are_bytes_tensors() -> None:
    tensor = np.array(["ä", "b"])
    assert datatype_of(tensor) == "BYTES"
    assert tensor_to_bytes(tensor, "BYTES") == b"\x02\x00\x00\x00\xc3\xa4\x01\x00\x00\x00b"
    assert json.loads(tensor_to_json(tensor, "BYTES", "x")) == ["ä", "b"]


def test_a_dtype_without_an_oip_name_is_a_bug_of_the_model() -> None:
    with pytest.raises(Internal):
        datatype_of(np.zeros(1, dtype=np.complex64))


def test_numbers_json_does_not_have_are_written_as_literals() -> None:
    tensor = np.array([np.nan, np.inf, -np.inf, 1.5], dtype=np.float32)
    assert tensor_to_json(tensor, "FP32", "x") == b"[NaN, Infinity, -Infinity, 1.5]"


def test_bytes_that_are_no_text_cannot_be_json() -> None:
    with pytest.raises(Unsupported, match="binary data"):
        tensor_to_json(object_array([b"\xff"], (1,)), "BYTES", "output 'x'")


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]])
def test_json_data_may_be_nested_or_flat(data: list[object]) -> None:
    assert tensor_from_json(data, "INT8", (2, 2), 4, "x").tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("data", "datatype", "message"),
    [
        (None, "FP32", "x is absent"),
        ({"a": 1}, "FP32", "x is of type dict"),
        ([1, 2, 3], "FP32", "x has 3 elements; allowed exactly 2"),
        ([[1], [2, 3]], "FP32", "ragged"),
        ([[1], 2], "FP32", "ragged"),
        ([1, [2]], "FP32", r"x\[1\].*got `array`"),
        ([1, "2"], "FP32", r"x\[1\].*got `str`"),
        ([1, True], "FP32", r"x\[1\].*got `bool`"),
        ([1, None], "FP32", r"x\[1\].*got `null`"),
        ([1, 2.5], "INT8", r"x\[1\].*got `float`"),
        ([1, 0], "BOOL", r"x\[0\].*got `int`"),
        (["a", 1], "BYTES", r"x\[1\].*got `int`"),
        ([1, 2], "FP16", "binary data only"),
        ([1, 2], "BF16", "binary data only"),
    ],
)
def test_wrong_json_data_is_named(data: object, datatype: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        tensor_from_json(data, datatype, (2,), 2, "x")


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_keep_their_limits_and_nothing_beyond(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype])
    got = tensor_from_json([int(limits.min), int(limits.max)], datatype, (2,), 2, "x")
    assert got.tolist() == [limits.min, limits.max]
    for beyond in (int(limits.min) - 1, int(limits.max) + 1, 10**30):
        with pytest.raises(InvalidInput, match=f"out of range for {datatype}"):
            tensor_from_json([0, beyond], datatype, (2,), 2, "x")


def test_a_number_beyond_fp32_becomes_infinity() -> None:
    assert tensor_from_json([1e39, -1e39], "FP32", (2,), 2, "x").tolist() == [np.inf, -np.inf]


def test_typed_contents_are_checked_for_count_and_range() -> None:
    assert tensor_from_numbers([b"a", b""], "BYTES", (2,), 2, "x").tolist() == [b"a", b""]
    assert tensor_from_numbers([True, False], "BOOL", (2,), 2, "x").tolist() == [True, False]
    with pytest.raises(InvalidInput, match="has 1 elements; allowed exactly 2"):
        tensor_from_numbers([1], "INT8", (2,), 2, "x")
    with pytest.raises(InvalidInput, match="out of range for INT8"):
        tensor_from_numbers([1, 300], "INT8", (2,), 2, "x")


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        struct.pack("<I", 2) + b"a",
        struct.pack("<I", 2**32 - 1) + b"a",
        struct.pack("<I", 1) + b"a" + b"\x00\x00",
    ],
)
def test_damaged_bytes_data_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="no BYTES data at byte"):
        tensor_from_bytes(memoryview(data), "BYTES", (1,), 1, "x")


def test_a_wrong_number_of_bytes_or_elements_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has 7 bytes of data; allowed exactly 8 for FP32"):
        tensor_from_bytes(memoryview(bytes(7)), "FP32", (2,), 2, "x")
    with pytest.raises(InvalidInput, match="has 2 elements; allowed exactly 1"):
        tensor_from_bytes(memoryview(bytes(8)), "BYTES", (1,), 1, "x")


@pytest.mark.parametrize("shape", [(2**31,), (2**16, 2**16), (0, 2**70), (0, 2**20, 2**20), (2**64, 0)])
def test_a_shape_too_large_is_refused_even_beside_a_zero(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"x\.shape is .*allowed up to 2147483647 elements"):
        num_elements(shape, "x")


@given(data=st.data(), num_rows=st.integers(1, 4), width=st.integers(0, 5), kept=st.integers(1, 7))
def test_top_classes_agree_with_a_plain_sort(data: st.DataObject, num_rows: int, width: int, kept: int) -> None:
    datatype = data.draw(st.sampled_from([*INTEGERS, "FP16", "FP32", "FP64"]))
    scores = data.draw(tensors(datatype, (num_rows, width)))
    got = top_classes(scores, kept, (), is_batched=True)
    assert got.shape == (num_rows, min(kept, width))
    for row, texts in zip(scores.tolist(), got.tolist(), strict=True):
        ordered = sorted(range(width), key=lambda index: (-row[index] if row[index] == row[index] else np.inf, index))
        expected = [index for index in ordered if not np.isnan(row[index])][:kept]
        indices = [int(text.split(b":")[1]) for text in texts]
        assert [index for index in indices if not np.isnan(row[index])] == expected


def test_top_classes_carry_value_index_and_label() -> None:
    scores = np.array([[0.25, np.nan, 0.5, 0.5]], dtype=np.float32)
    got = top_classes(scores, 4, ["cat", "dog", "cow"], is_batched=True)
    assert got.tolist() == [[b"0.500000:2:cow", b"0.500000:3", b"0.250000:0:cat", b"nan:1:dog"]]


def test_top_classes_of_a_model_without_batches_are_one_row() -> None:
    scores = np.array([[1, 255], [7, 0]], dtype=np.uint8)
    assert top_classes(scores, 2, (), is_batched=False).tolist() == [b"255:1", b"7:2"]
