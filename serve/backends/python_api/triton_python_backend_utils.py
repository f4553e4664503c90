"""`triton_python_backend_utils`, as a `model.py` written for Triton's Python backend imports it.

Runs in the model's process only. What is here is that module's interface; what needs the server (`exec` of a request to
another model) goes through `_ask`, which the process sets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

_NUMPY_TYPES: dict[str, Any] = {
    "TYPE_BOOL": np.bool_, "TYPE_UINT8": np.uint8, "TYPE_UINT16": np.uint16, "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64, "TYPE_INT8": np.int8, "TYPE_INT16": np.int16, "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64, "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}  # fmt: skip


def _not_started(_: InferenceRequest) -> InferenceResponse:
    raise TritonModelException("other models can be asked while requests are executed")


_ask: Callable[[InferenceRequest], InferenceResponse] = _not_started


class TritonModelException(Exception):
    """Fails every request of the batch."""


class TritonError:
    """The error of one response."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = str(message), int(code)

    def message(self) -> str:
        """What it says."""
        return self._message

    def code(self) -> int:
        """One of this class's constants."""
        return self._code

    def __str__(self) -> str:
        return self._message


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = str(name), np.asarray(array)

    def name(self) -> str:
        """Of the model's input or output."""
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """The array; text is an array of bytes objects."""
        return self._array

    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._array.shape

    def triton_dtype(self) -> str:
        """`TYPE_FP32` and the like."""
        return numpy_to_triton_type(self._array.dtype)

    def is_cpu(self) -> bool:
        """Always: tensors come and go through the host's memory."""
        return True

    def to_dlpack(self) -> Any:
        """For libraries that take DLPack."""
        return self._array.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """From whatever has `__dlpack__`, on the CPU."""
        return Tensor(name, np.from_dlpack(tensor))


class InferenceRequest:
    """One request, to this model or to another."""

    def __init__(
        self, request_id: str = "", correlation_id: int | str = 0, requested_output_names: Sequence[str] = (),
        model_name: str = "", model_version: int = -1, inputs: Sequence[Tensor] = (), flags: int = 0, timeout: int = 0,
        parameters: str | dict[str, Any] = "", **_: Any,
    ) -> None:  # fmt: skip
        self._request_id, self._correlation_id, self._flags, self._timeout = request_id, correlation_id, flags, timeout
        self._outputs, self._inputs = list(requested_output_names), list(inputs)
        self._model_name, self._model_version = model_name, model_version
        self._parameters = parameters if isinstance(parameters, str) else json.dumps(parameters)

    def inputs(self) -> list[Tensor]:
        """In the order they came."""
        return self._inputs

    def request_id(self) -> str:
        """The client's, or empty."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """Of its sequence; 0 for none."""
        return self._correlation_id

    def flags(self) -> int:
        """Of its sequence."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """For a request to another model."""
        self._flags = flags

    def timeout(self) -> int:
        """Microseconds; 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """The client's own, as JSON."""
        return self._parameters

    def requested_output_names(self) -> list[str]:
        """What the client wants."""
        return self._outputs

    def model_name(self) -> str:
        """Of a request to another model."""
        return self._model_name

    def model_version(self) -> int:
        """-1 is the newest."""
        return self._model_version

    def is_cancelled(self) -> bool:
        """Never told: who has left is not answered."""
        return False

    def get_response_sender(self) -> Any:
        """For decoupled models, which are not served."""
        raise TritonModelException("get_response_sender is for decoupled models, which this server does not serve")

    def exec(self, decoupled: bool = False) -> InferenceResponse:
        """Asks another model of the repository; the response has its error, if there is one."""
        if decoupled:
            raise TritonModelException("exec(decoupled=True) is not served")
        return _ask(self)

    async def async_exec(self, decoupled: bool = False) -> InferenceResponse:
        """`exec` for coroutines."""
        return await asyncio.to_thread(self.exec, decoupled)


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | str | None = None) -> None:
        self._tensors = list(output_tensors)
        self._error = TritonError(error) if isinstance(error, str) else error

    def output_tensors(self) -> list[Tensor]:
        """In the order they were given."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether it is one."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """What is wrong."""
        return self._error


class ModelConfig:
    """What `auto_complete_config` fills in."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        """As it is now."""
        return self._config

    def set_max_batch_size(self, size: int) -> None:
        """0: no batch dimension."""
        self._config["max_batch_size"] = size

    def set_dynamic_batching(self) -> None:
        """Requests may be executed together."""
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, policy: dict[str, Any]) -> None:
        """Whether it is decoupled."""
        self._config["model_transaction_policy"] = policy

    def add_input(self, tensor: dict[str, Any]) -> None:
        """Where none of that name is configured."""
        self._add("input", tensor)

    def add_output(self, tensor: dict[str, Any]) -> None:
        """Where none of that name is configured."""
        self._add("output", tensor)

    def _add(self, kind: str, tensor: dict[str, Any]) -> None:
        if all(one["name"] != tensor["name"] for one in self._config.setdefault(kind, [])):
            self._config[kind].append(tensor)


class Logger:
    """Lines of the server's log."""

    _log = logging.getLogger("model")

    @classmethod
    def log(cls, message: str, level: int = logging.INFO) -> None:
        """At a level of the logging module's."""
        cls._log.log(level, message)

    @classmethod
    def log_info(cls, message: str) -> None:
        """Information."""
        cls._log.info(message)

    @classmethod
    def log_warn(cls, message: str) -> None:
        """A warning."""
        cls._log.warning(message)

    @classmethod
    def log_error(cls, message: str) -> None:
        """An error."""
        cls._log.error(message)

    @classmethod
    def log_verbose(cls, message: str) -> None:
        """What is shown at level DEBUG."""
        cls._log.debug(message)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """None where the request has none."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    """None where the response has none. Raises TritonModelException for an error."""
    if response.has_error():
        raise TritonModelException(str(response.error()))
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The input's entry in the configuration."""
    return next((one for one in model_config.get("input", []) if one["name"] == name), None)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The output's entry in the configuration."""
    return next((one for one in model_config.get("output", []) if one["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    """Whether the model may send any number of responses."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled"))


def triton_string_to_numpy(name: str) -> Any:
    """`TYPE_FP32` → numpy.float32."""
    return _NUMPY_TYPES[name]


def numpy_to_triton_type(dtype: Any) -> str:
    """numpy.float32 → `TYPE_FP32`; everything that is text is `TYPE_STRING`."""
    wanted = np.dtype(dtype)
    return next((name for name, one in _NUMPY_TYPES.items() if np.dtype(one) == wanted), "TYPE_STRING")


def serialize_byte_tensor(tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Each element behind its length, as the protocol has them."""
    parts = []
    for one in tensor.ravel().tolist():
        data = one if isinstance(one, bytes) else str(one).encode()
        parts.append(struct.pack("<I", len(data)) + data)
    return np.array([b"".join(parts)], np.object_)


def deserialize_bytes_tensor(data: bytes) -> np.ndarray[Any, Any]:
    """The reverse."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return np.array(found, np.object_)
