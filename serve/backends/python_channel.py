"""What passes between a Python model's process and the server: messages over a socket, tensors as bytes.

Used at both ends; imports nothing of the server, because the other end is the model's process.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

MAX_MESSAGE_BYTES = 1 << 31
_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 20


class WireTensor(msgspec.Struct, array_like=True):
    """Elements row-major in this machine's order; `texts` in their place for a tensor of bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""
    texts: list[bytes] | None = None


class WireRequest(msgspec.Struct, array_like=True):
    """One inference request."""

    tensors: list[WireTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[str] = []


class WireResponse(msgspec.Struct, array_like=True):
    """Tensors, or an error and Triton's code for it."""

    tensors: list[WireTensor] = []
    error: str | None = None
    code: int = 0


class Start(msgspec.Struct, tag=True):
    """To the model's process: load `model.py` of `folder` with these arguments of `initialize`."""

    folder: str
    args: dict[str, str]


class Started(msgspec.Struct, tag=True):
    """It is ready; `completed` is what `auto_complete_config` said, as JSON."""

    completed: str = ""


class Execute(msgspec.Struct, tag=True):
    """To the process: one batch."""

    requests: list[WireRequest]


class Executed(msgspec.Struct, tag=True):
    """One response per request, in order."""

    responses: list[WireResponse]


class Call(msgspec.Struct, tag=True):
    """From the process, while it executes: a request to another model."""

    model: str
    version: str
    request: WireRequest


class Called(msgspec.Struct, tag=True):
    """To the process: what the other model has answered."""

    response: WireResponse


class Failed(msgspec.Struct, tag=True):
    """It could not be started."""

    message: str


class Finalize(msgspec.Struct, tag=True):
    """To the process: end."""


Message = Start | Started | Execute | Executed | Call | Called | Failed | Finalize
_DECODER = msgspec.msgpack.Decoder(Message)
_ENCODER = msgspec.msgpack.Encoder()


class Channel:
    """One end. Any thread may send; one receives at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Raises OSError where the other end is gone, ValueError for a message that is too large."""
        data = _ENCODER.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message to or from the model takes {len(data)} bytes; allowed {MAX_MESSAGE_BYTES}")
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(data)))
            self._socket.sendall(data)

    def receive(self) -> Message:
        """The next message; raises EOFError when the other end has closed."""
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if size > MAX_MESSAGE_BYTES:
            raise EOFError("what came is no message")
        message: Message = _DECODER.decode(self._read(size))
        return message

    def close(self) -> None:
        """The other end finds it closed."""
        self._socket.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            n = self._socket.recv_into(view[filled : filled + _CHUNK])
            if n == 0:
                raise EOFError("the other end has closed")
            filled += n
        return data


def to_wire(name: str, tensor: np.ndarray[Any, Any]) -> WireTensor:
    """A tensor as it is sent. Raises TypeError for elements that have no place in one."""
    if tensor.dtype == np.object_ or tensor.dtype.kind in "SU":
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in tensor.ravel().tolist()]
        return WireTensor(name, "O", tensor.shape, texts=texts)
    if tensor.dtype.name == "bfloat16":
        return WireTensor(name, "bfloat16", tensor.shape, tensor.tobytes())
    if tensor.dtype.kind not in "biuf":
        raise TypeError(f"tensor {name!r} has elements of type {tensor.dtype}; allowed numbers, truth values and bytes")
    return WireTensor(name, tensor.dtype.str, tensor.shape, tensor.tobytes())


def from_wire(tensor: WireTensor) -> np.ndarray[Any, Any]:
    """The tensor that was sent; its elements may be written."""
    if tensor.texts is not None:
        found = np.empty(len(tensor.texts), np.object_)
        found[:] = tensor.texts
        return found.reshape(tensor.shape)
    if tensor.dtype == "bfloat16":
        import ml_dtypes

        dtype: Any = ml_dtypes.bfloat16
    else:
        dtype = tensor.dtype
    return np.frombuffer(bytearray(tensor.data), dtype).reshape(tensor.shape)


def tensors_of(tensors: Mapping[str, np.ndarray[Any, Any]]) -> list[WireTensor]:
    """Several, by name."""
    return [to_wire(name, tensor) for name, tensor in tensors.items()]
