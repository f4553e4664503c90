"""Requests that a version answers before clients' do: `model_warmup` of its configuration.

A configuration enters, and the model's folder, whose `warmup` holds the files that samples name; inputs leave, to be
inferred. Called when a version is loaded: one that cannot answer them is not served.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from serve.backends.base import Tensor
from serve.errors import InvalidInput

FOLDER = "warmup"
_MAX_REQUESTS = 1_000
_MAX_BYTES = 1 << 30
_NAMES = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "bfloat16", "STRING": "object"}
"""Of numpy; the others are the same in small letters."""


def warm_up_requests(config: ModelConfig, model_dir: Path) -> Iterator[dict[str, Tensor]]:
    """The inputs of each request, in order. Raises InvalidInput naming the sample that is wrong."""
    num_requests = sum(max(1, sample.count) for sample in config.model_warmup)
    if num_requests > _MAX_REQUESTS:
        raise InvalidInput(
            f"model_warmup asks for {num_requests} requests; allowed {_MAX_REQUESTS}", field="model_warmup"
        )
    for sample in config.model_warmup:
        rows = max(1, sample.batch_size)
        if config.max_batch_size and rows > config.max_batch_size:
            raise InvalidInput(f"{_path(sample)}.batch_size is {rows}; allowed at most {config.max_batch_size}")
        batch = (rows,) if config.max_batch_size else ()
        inputs = {name: _tensor(sample, name, one, batch, model_dir) for name, one in sample.inputs.items()}
        for _ in range(max(1, sample.count)):
            yield inputs


def _path(sample: Any) -> str:
    return f"model_warmup {sample.name[:64]!r}"


def _tensor(sample: Any, name: str, one: Any, batch: tuple[int, ...], model_dir: Path) -> Tensor:
    path = f"{_path(sample)}.inputs[{name[:64]!r}]"
    datatype = DataType.Name(one.data_type).removeprefix("TYPE_")
    if datatype == "INVALID" or any(dim < 1 for dim in one.dims):
        raise InvalidInput(f"{path} is {datatype} {list(one.dims)}; allowed a data type, and sizes of 1 and up")
    shape = (*batch, *one.dims)
    dtype = _dtype(datatype)
    if prod(shape) * max(1, dtype.itemsize) > _MAX_BYTES:
        raise InvalidInput(f"{path} takes more than {_MAX_BYTES} bytes")
    kind = one.WhichOneof("input_data_type")
    if datatype == "STRING":
        return np.full(shape, b"", np.object_)
    if kind == "random_data":
        return np.random.default_rng(0).random(shape).astype(dtype)
    if kind == "input_data_file":
        return _read(model_dir / FOLDER, one.input_data_file, path, shape, dtype)
    return np.zeros(shape, dtype)


def _dtype(datatype: str) -> np.dtype[Any]:
    name: Any = _NAMES.get(datatype, datatype.lower())
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _read(folder: Path, file: str, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    whole = (folder / file).resolve()
    if not whole.is_relative_to(folder.resolve()):
        raise InvalidInput(f"{path}.input_data_file leads out of the folder {FOLDER!r}")
    try:
        data = whole.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}.input_data_file {file!r} cannot be read: {error.strerror}") from None
    wanted = prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise InvalidInput(f"{path}.input_data_file has {len(data)} bytes; {list(shape)} of {dtype} are {wanted}")
    return np.frombuffer(data, dtype).reshape(shape)
