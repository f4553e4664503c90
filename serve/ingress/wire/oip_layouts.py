"""Infer messages that differ from an earlier one in their tensor's numbers alone are not parsed again.

A client sends the same message over and over: model, names, shapes; and last the raw tensor. What comes before that is
looked up, whole, and what the earlier message was parsed to stands for it. The answer's head is remembered likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from tritonclient.grpc.service_pb2 import ModelInferRequest

from serve.backends.base import Tensor
from serve.ingress.wire.oip_tensors import DTYPES
from serve.pipelines.infer.contract import InferRequest

_RAW_INPUT, _RAW_OUTPUT = 7, 6
_LENGTH_DELIMITED = 2
_MAX_LAYOUTS = 256
_MAX_ANSWERS = 64
_NOT_PLAIN = frozenset({"BOOL", "BYTES"})
"""Whose elements are looked at one by one."""


class Layout:
    """One message without its numbers. `request` is what it was parsed to; its tensor is not used again."""

    __slots__ = ("_answers", "_at", "_dtype", "_name", "_shape", "head", "request")

    def __init__(self, head: bytes, request: InferRequest, name: str, dtype: np.dtype[np.generic]) -> None:
        self.head = head
        self.request = request
        self._name = name
        self._shape = request.inputs[name].shape
        self._dtype = dtype
        self._at = len(head)
        self._answers: dict[tuple[object, ...], bytes] = {}

    def read(self, payload: bytes) -> InferRequest:
        """The request of a message with this head and this length."""
        asked = self.request
        tensor: Tensor = np.ndarray(self._shape, self._dtype, payload, self._at)
        if not tensor.flags.aligned:
            tensor = tensor.copy()
        return InferRequest({self._name: tensor}, asked.outputs, asked.id, asked.parameters, None, asked.priority,
                            asked.batch_size)  # fmt: skip

    def answer_head(self, version: str, tensors: Sequence[Tensor]) -> bytes | None:
        """Everything of the answer before its raw tensors, if this version gave tensors like these before."""
        return self._answers.get(_likeness(version, tensors))

    def remember_answer(self, version: str, tensors: Sequence[Tensor], head: bytes) -> None:
        """Keeps an answer's head, as long as there are few different ones."""
        if len(self._answers) < _MAX_ANSWERS:
            self._answers[_likeness(version, tensors)] = head


class Layouts:
    """Of one model; the latest of each length. Belongs to the threads of one runner."""

    def __init__(self) -> None:
        self._by_length: dict[int, Layout] = {}

    def find(self, payload: bytes) -> Layout | None:
        """The layout of a message that differs in its numbers alone."""
        layout = self._by_length.get(len(payload))
        return layout if layout is not None and payload.startswith(layout.head) else None

    def remember(self, payload: bytes, message: ModelInferRequest, request: InferRequest) -> None:
        """Keeps what a message was parsed to, if only the end of it is numbers and nothing in it is of one time."""
        raw = message.raw_input_contents
        if len(raw) != 1 or request.timeout_us is not None or message.inputs[0].datatype in _NOT_PLAIN:
            return
        at = _start_of_last(payload, _RAW_INPUT)
        if at is None or len(payload) - at != len(raw[0]):
            return
        if len(self._by_length) >= _MAX_LAYOUTS:
            self._by_length.clear()
        entry = message.inputs[0]
        self._by_length[len(payload)] = Layout(payload[:at], request, entry.name, DTYPES[entry.datatype])


def raw_outputs(head: bytes, bodies: Sequence[bytes]) -> bytes:
    """A ModelInferResponse: its other fields as they are, then raw_output_contents."""
    parts = [head]
    for body in bodies:
        parts += (b"\x32", varint(len(body)), body)
    return b"".join(parts)


def varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _likeness(version: str, tensors: Sequence[Tensor]) -> tuple[object, ...]:
    return version, *[(tensor.shape, tensor.dtype) for tensor in tensors]


def _start_of_last(payload: bytes, number: int) -> int | None:
    """Where the contents of the last field begin, if that is field `number` of bytes; None otherwise."""
    at, start, tag = 0, None, 0
    while at < len(payload):
        tag, at = _read_varint(payload, at)
        kind = tag & 7
        if kind == 0:
            _, at = _read_varint(payload, at)
        elif kind == _LENGTH_DELIMITED:
            size, at = _read_varint(payload, at)
            start, at = at, at + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return None
    return start if at == len(payload) and tag == number << 3 | _LENGTH_DELIMITED else None


def _read_varint(payload: bytes, at: int) -> tuple[int, int]:
    """Value and the place behind it; a message that was parsed has whole ones."""
    value = shift = 0
    while True:
        byte = payload[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7


class Asked(msgspec.Struct, frozen=True):
    """What an answer needs of its request."""

    request: InferRequest
    layout: Layout | None = None
