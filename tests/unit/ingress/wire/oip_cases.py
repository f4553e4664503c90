"""Models, tensors and comparisons that the tests of the OIP codecs share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.ingress.wire.oip_tensors import DTYPES

JSON_DATATYPES = sorted(set(DTYPES) - {"FP16", "BF16"})
BATCH_LIMIT = 8

TREES = ModelSpec(
    name="trees",
    version="3",
    platform="fil",
    backend="fil",
    max_batch_size=BATCH_LIMIT,
    inputs=(TensorSpec("input__0", "FP32", (3,)),),
    outputs=(TensorSpec("output__0", "FP32", (4,)),),
)


def model(*datatypes: str, max_batch_size: int = BATCH_LIMIT, dims: tuple[int, ...] = (-1, 2)) -> ModelSpec:
    """A model with one input and one output of each datatype, all of the same dims."""
    inputs = tuple(TensorSpec(f"in{index}", name, dims) for index, name in enumerate(datatypes))
    outputs = tuple(TensorSpec(f"out{index}", name, dims) for index, name in enumerate(datatypes))
    return ModelSpec("m", "1", "p", "b", max_batch_size, inputs, outputs)


def object_array(elements: list[bytes], shape: tuple[int, ...]) -> Tensor:
    tensor = np.empty(len(elements), dtype=np.object_)
    tensor[:] = elements
    return tensor.reshape(shape)


@st.composite
def tensors(draw: st.DrawFn, datatype: str, shape: tuple[int, ...], *, is_text: bool = False) -> Tensor:
    """Any bit pattern of the datatype (NaN payloads and subnormals included); `is_text` keeps BYTES within UTF-8."""
    count = int(np.prod(shape))
    if datatype == "BYTES":
        element = st.text(max_size=6).map(str.encode) if is_text else st.binary(max_size=6)
        return object_array(draw(st.lists(element, min_size=count, max_size=count)), shape)
    dtype = DTYPES[datatype]
    if datatype == "BOOL":
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype).reshape(shape)
    size = count * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=dtype).reshape(shape)


shapes = st.tuples(st.integers(1, BATCH_LIMIT), st.integers(0, 3), st.just(2))


def assert_same(got: Tensor, wanted: Tensor) -> None:
    """Equal dtype, shape and values; NaN equals NaN."""
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    if wanted.dtype.kind == "O":
        assert got.tolist() == wanted.tolist()
    elif wanted.dtype.kind in "biu":
        np.testing.assert_array_equal(got, wanted)
    else:
        with np.errstate(invalid="ignore"):  # widening a signalling NaN
            np.testing.assert_array_equal(got.astype(np.float64), wanted.astype(np.float64))
