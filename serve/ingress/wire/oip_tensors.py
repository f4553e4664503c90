"""Tensors as the Open Inference Protocol writes them: datatype names, raw little-endian bytes, JSON lists.

Bytes or parsed JSON enter, numpy arrays leave, and the other way round; called by the HTTP and the gRPC codec.
Hot file: a 1 × 30 FP32 tensor is decoded in about 3 µs from JSON and under 1 µs from bytes.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from serve.backends.base import Tensor
from serve.errors import Internal, InvalidInput, Unsupported

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
MAX_ELEMENTS = 2**31 - 1

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_JSON_TYPES: Mapping[str, Any] = {
    "BOOL": list[bool],
    "FP32": list[float],
    "FP64": list[float],
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"), list[int]),
}
# `array` converts a list with a range check, and twice as fast as numpy does (0.9 against 2.0 µs for 30 numbers).
_TYPECODES = dict(
    zip(
        ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"),
        "bBHIQbhiqfd",
        strict=True,
    )
)
_LENGTH = struct.Struct("<I")


def datatype_of(tensor: Tensor) -> str:
    """The OIP name of an array's dtype; objects, bytes and text are BYTES. Raises Internal for a dtype without one."""
    if tensor.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _DATATYPES[tensor.dtype]
    except KeyError:
        raise Internal from None


def num_elements(shape: Sequence[int], path: str) -> int:
    """The product of a shape. Raises InvalidInput over 2^31 - 1, also where a zero would hide the other dimensions."""
    # Paths are completed where an error is made: an f-string on the way costs as much as the product.
    count = math.prod(shape)
    if count > MAX_ELEMENTS or (count == 0 and math.prod(filter(None, shape)) > MAX_ELEMENTS):
        raise InvalidInput(
            f"{path}.shape is {str(list(shape))[:128]}; allowed up to {MAX_ELEMENTS} elements",
            field=f"{path}.shape",
        )
    return count


def tensor_from_bytes(data: memoryview, datatype: str, shape: Sequence[int], count: int, path: str) -> Tensor:
    """A view of `data` (a copy where that is not aligned); `count` is the product of `shape`. BYTES become an object
    array of `bytes`. Raises InvalidInput when the data does not have the length the shape needs.
    """
    if datatype == "BYTES":
        return _object_array(_elements(data, path), shape, count, path)
    dtype = DTYPES[datatype]
    if data.nbytes != count * dtype.itemsize:
        raise InvalidInput(
            f"{path} has {data.nbytes} bytes of data; "
            f"allowed exactly {count * dtype.itemsize} for {datatype} of shape {list(shape)}",
            field=path,
        )
    if datatype == "BOOL":  # any byte but 0 is true; a bool array must hold 0 and 1 only
        return np.frombuffer(data, np.uint8).astype(np.bool_).reshape(shape)
    tensor: Tensor = np.ndarray(shape, dtype, data)  # half the time of frombuffer and reshape
    return tensor if tensor.flags.aligned else tensor.copy()


def tensor_from_json(data: object, datatype: str, shape: Sequence[int], count: int, path: str) -> Tensor:
    """An array from parsed JSON, flat or nested, row-major. A number beyond FP32 becomes infinity, as in Triton; an
    integer beyond its type is InvalidInput, as are ragged lists, elements of another type and a wrong count.
    """
    flat = _flattened(data, datatype, path)
    if datatype == "BYTES":
        return _object_array(_encoded(flat, path), shape, count, path)
    if datatype not in _TYPECODES:
        raise InvalidInput(f"{path} is JSON; {datatype} is allowed as binary data only", field=path)
    if len(flat) != count:
        raise _wrong_count(len(flat), shape, count, path)
    try:
        return _packed(msgspec.convert(flat, _JSON_TYPES[datatype]), datatype, shape, path)
    except msgspec.ValidationError as error:
        raise _wrong_element(error, datatype, path) from None


def tensor_from_numbers(numbers: Sequence[Any], datatype: str, shape: Sequence[int], count: int, path: str) -> Tensor:
    """An array from gRPC's typed contents, which bring the right Python type already. Raises as `tensor_from_json`."""
    if datatype == "BYTES":
        return _object_array(list(numbers), shape, count, path)
    if len(numbers) != count:
        raise _wrong_count(len(numbers), shape, count, path)
    return _packed(numbers, datatype, shape, path)


def tensor_to_bytes(tensor: Tensor, datatype: str) -> bytes:
    """Row-major little-endian bytes; BYTES as a uint32 length before each element. Copies, so that a model may reuse
    its output buffer.
    """
    if datatype != "BYTES":
        return tensor.tobytes()
    elements = [_as_bytes(element) for element in tensor.reshape(-1).tolist()]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in elements))


def tensor_to_json(tensor: Tensor, datatype: str, path: str) -> bytes:
    """A flat JSON list. NaN and infinities are the literals NaN, Infinity and -Infinity, which Triton writes and its
    clients read. Raises Unsupported for BYTES that are not UTF-8.
    """
    flat = tensor.ravel()
    if datatype == "BYTES":
        try:
            return orjson.dumps([_as_bytes(element).decode() for element in flat.tolist()])
        except UnicodeDecodeError:
            raise Unsupported(f"{path} holds bytes that are not UTF-8; ask for it as binary data") from None
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    # A list of numbers has an "n" in it only where orjson wrote null for a number that JSON does not have.
    return text if b"n" not in text else json.dumps(flat.tolist()).encode()


def top_classes(scores: Tensor, num_classes: int, labels: Sequence[str], *, is_batched: bool) -> Tensor:
    """The classification extension: `value:index[:label]` of the highest scores, best first, ties by index, NaN last.

    Shape [batch, n] (or [n] without a batch dimension) with n = min(num_classes, scores per row); higher dimensions
    of a row are flattened first.
    """
    rows = scores.reshape(scores.shape[0], -1) if is_batched else scores.reshape(1, -1)
    num_kept = min(num_classes, rows.shape[1])
    classes = np.empty((rows.shape[0], num_kept), dtype=np.object_)
    for row, kept in zip(rows, classes, strict=True):
        kept[:] = [_class_text(row[index], int(index), labels) for index in _best_first(row)[:num_kept]]
    return classes if is_batched else classes[0]


def _flattened(data: object, datatype: str, path: str) -> list[Any]:
    if not isinstance(data, list):
        got = "absent" if data is None else f"of type {type(data).__name__}"
        raise InvalidInput(f"{path} is {got}; allowed a list of {datatype} elements", field=path)
    while data and isinstance(data[0], list):
        width = len(data[0])
        if not all(isinstance(row, list) and len(row) == width for row in data):
            raise InvalidInput(f"{path} is ragged; allowed lists of one length at each depth", field=path)
        data = list(chain.from_iterable(data))
    return data


def _packed(numbers: Sequence[Any], datatype: str, shape: Sequence[int], path: str) -> Tensor:
    try:
        values = array(_TYPECODES[datatype], numbers)
    except OverflowError as error:
        raise InvalidInput(f"{path} has a number out of range for {datatype}: {error}", field=path) from None
    return np.ndarray(shape, DTYPES[datatype], values)


def _wrong_element(error: msgspec.ValidationError, datatype: str, path: str) -> InvalidInput:
    """The answer to an element of the wrong JSON type; the path gains the element's index in row-major order."""
    text, _, index = str(error).partition(" - at `$")
    element = f"{path}{index.rstrip('`')}"
    return InvalidInput(f"{element}: {text}; allowed {datatype} elements", field=element)


def _wrong_count(got: int, shape: Sequence[int], count: int, path: str) -> InvalidInput:
    return InvalidInput(f"{path} has {got} elements; allowed exactly {count} for shape {list(shape)}", field=path)


def _object_array(elements: Iterable[bytes], shape: Sequence[int], count: int, path: str) -> Tensor:
    values = list(elements)
    if len(values) != count:
        raise _wrong_count(len(values), shape, count, path)
    tensor = np.empty(count, dtype=np.object_)
    tensor[:] = values
    return tensor.reshape(shape)


def _elements(data: memoryview, path: str) -> list[bytes]:
    elements, offset, size = [], 0, data.nbytes
    while offset + _LENGTH.size <= size:
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        elements.append(bytes(data[start:offset]))
    if offset != size:
        raise InvalidInput(
            f"{path} is no BYTES data at byte {min(offset, size)} of {size}; "
            "allowed a uint32 length before each element",
            field=path,
        )
    return elements


def _encoded(texts: list[Any], path: str) -> list[bytes]:
    try:
        return [text.encode() for text in msgspec.convert(texts, list[str])]
    except msgspec.ValidationError as error:
        raise _wrong_element(error, "BYTES", path) from None


def _as_bytes(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _best_first(row: Tensor) -> npt.NDArray[np.intp]:
    """Indices by descending score; stable, so the lower index wins a tie."""
    scores = np.where(np.isnan(row), -np.inf, row) if row.dtype.kind not in "biu" else row
    # Twice reversed around a stable ascending sort: a negated score would overflow for unsigned and minimum values.
    return (row.size - 1 - np.argsort(scores[::-1], kind="stable"))[::-1]


def _class_text(score: Any, index: int, labels: Sequence[str]) -> bytes:
    value = f"{int(score)}" if np.issubdtype(type(score), np.integer) else f"{float(score):f}"
    label = labels[index] if index < len(labels) else ""
    return f"{value}:{index}:{label}".encode() if label else f"{value}:{index}".encode()
