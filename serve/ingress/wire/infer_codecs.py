"""The protocol's `infer` for one model or pipeline, as codecs of the two protocols.

HTTP bodies and gRPC messages enter; what the endpoint's `InferEndpoint` makes of their tensors are the items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from serve.backends.base import ModelSpec
from serve.batching.arrival import Decoded, Encoded
from serve.batching.outcome import Outcome
from serve.errors import DeadlineExceeded, HeadroomError, InvalidInput, NotFound
from serve.ingress.http_request import HttpRequest
from serve.ingress.wire import oip_grpc, oip_http
from serve.ingress.wire.content_encoding import chosen_encoding, compress, decompress
from serve.ingress.wire.json_errors import Undecodable
from serve.ingress.wire.oip_layouts import Asked, Layouts, varint
from serve.pipelines.infer.contract import Inferred, InferRequest, InferResponse

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_HEADER_LENGTH = "inference-header-content-length"
_NAME_TAG, _VERSION_TAG = 0x0A, 0x12
_INFER_RESPONSE = b"\x12"
"""Of a ModelStreamInferResponse."""
_LONG_BYTES = 16 << 10
"""Of a message whose search for a word takes longer than looking its layout up."""


class _Head(msgspec.Struct):
    parameters: dict[str, Any] = {}


class InferEndpoint(Protocol):
    """How a model's or pipeline's items come out of tensors and go back into them."""

    @property
    def spec(self) -> ModelSpec:
        """Name, version and tensors."""
        ...

    def items(self, request: InferRequest) -> Sequence[Outcome[Any]]:
        """The items of a request; as many as its batch, or one."""
        ...

    def response(self, request: InferRequest, outcomes: Sequence[Outcome[Any]]) -> InferResponse:
        """The answer's tensors; raises the error of a request that fails as a whole."""
        ...


class ModelEndpoint:
    """A model as it is: the request is the item."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def items(self, request: InferRequest) -> Sequence[Outcome[Any]]:
        """The request itself: the flow joins requests, not rows."""
        return (request,)

    def response(self, request: InferRequest, outcomes: Sequence[Outcome[Any]]) -> InferResponse:
        """What the flow answered."""
        outcome = outcomes[0]
        if isinstance(outcome, HeadroomError):
            raise outcome
        assert isinstance(outcome, Inferred)
        return outcome.response


class HttpInferCodec:
    """`POST /v2/models/{name}/infer`."""

    endpoint = "/v2/models/{model}/infer"

    def __init__(self, endpoint: InferEndpoint, max_body_bytes: int) -> None:
        self._model = endpoint
        self._max_body_bytes = max_body_bytes

    def count_items(self, payload: HttpRequest) -> int:
        """One request counts as one: its rows are known only once it is decoded."""
        return 1

    def timeout_us(self, payload: HttpRequest) -> int | None:
        """The `timeout` parameter. A cheap look, and a real one only where the word occurs before the tensors."""
        return _timeout_us(payload.body, _header_length(payload))

    def _check_time(self, payload: HttpRequest, body: bytes | memoryview) -> None:
        """The time limit inside a compressed body is seen too late for the deadline; what is past it stops here."""
        timeout_us = _timeout_us(bytes(body), _header_length(payload))
        if timeout_us is not None and time.monotonic_ns() > payload.arrived_ns + timeout_us * 1000:
            raise DeadlineExceeded(f"no answer within the {timeout_us / 1000:.1f} ms allowed")

    def decode(self, payload: HttpRequest) -> Decoded:
        """Reads JSON or binary tensors, compressed or not."""
        encoding = payload.head.header(b"content-encoding") or ""
        body = decompress(payload.body, encoding, self._max_body_bytes)
        if body is not payload.body:
            self._check_time(payload, body)
        request = oip_http.decode_infer(body, _header_length(payload), self._model.spec)
        return Decoded(self._model.items(request), (request, payload.head.header(b"accept-encoding") or ""))

    def encode(self, request: tuple[InferRequest, str], outcomes: Sequence[Outcome[Any]]) -> Encoded:
        """JSON, or JSON and binary tensors behind each other, as the request asked."""
        asked, accept_encoding = request
        parts, header_length = oip_http.encode_infer(self._model.response(asked, outcomes), asked)
        encoding = chosen_encoding(accept_encoding) if accept_encoding else None
        body = b"".join(parts) if encoding is None else compress(parts, encoding)
        headers: tuple[tuple[str, str], ...] = () if encoding is None else (("content-encoding", encoding),)
        if header_length is None:
            return Encoded(body, "application/json", headers)
        return Encoded(body, "application/octet-stream", (*headers, (_HEADER_LENGTH, str(header_length))))


class GrpcInferCodec:
    """`inference.GRPCInferenceService/ModelInfer`."""

    endpoint = "ModelInfer"

    def __init__(self, endpoint: InferEndpoint) -> None:
        self._model = endpoint
        self._layouts = Layouts()

    def count_items(self, payload: bytes) -> int:
        """One request counts as one."""
        return 1

    def timeout_us(self, payload: bytes) -> int | None:
        """The `timeout` parameter; the message is parsed here only where the word occurs."""
        if len(payload) > _LONG_BYTES and self._layouts.find(payload) is not None:
            return None  # messages of one time have no layout
        if b"timeout" not in payload:
            return None
        parameter = _parse(payload).parameters.get("timeout")
        timeout_us = 0 if parameter is None else parameter.int64_param or parameter.uint64_param
        return timeout_us if timeout_us > 0 else None

    def decode(self, payload: bytes) -> Decoded:
        """Reads raw or typed contents."""
        layout = self._layouts.find(payload)
        if layout is not None:
            request = layout.read(payload)
        else:
            message = _parse(payload)
            request = oip_grpc.decode_infer(message, self._model.spec)
            self._layouts.remember(payload, message, request)
        return Decoded(self._model.items(request), Asked(request, layout))

    def encode(self, request: Asked, outcomes: Sequence[Outcome[Any]]) -> Encoded:
        """Raw contents."""
        response = self._model.response(request.request, outcomes)
        return Encoded(oip_grpc.encode_infer(response, request.request, request.layout), "application/grpc")


class GrpcStreamInferCodec(GrpcInferCodec):
    """One message of `inference.GRPCInferenceService/ModelStreamInfer`."""

    endpoint = "ModelStreamInfer"

    def encode(self, request: Asked, outcomes: Sequence[Outcome[Any]]) -> Encoded:
        """The response in its envelope."""
        body = super().encode(request, outcomes).body
        return Encoded(b"".join((_INFER_RESPONSE, varint(len(body)), body)), "application/grpc")

    def encode_error(self, payload: bytes, error: HeadroomError) -> Encoded:
        """In-band, as `stream_error` has it."""
        return Encoded(stream_error(payload, error), "application/grpc")


def stream_error(payload: bytes, error: HeadroomError) -> bytes:
    """A ModelStreamInferResponse that says what was wrong with a message, by its id; the stream goes on."""
    response = pb.ModelStreamInferResponse(error_message=error.message)
    try:
        request = pb.ModelInferRequest.FromString(payload)
    except DecodeError:
        request = pb.ModelInferRequest()
    response.infer_response.id, response.infer_response.model_name = request.id, request.model_name
    body: bytes = response.SerializeToString()
    return body


def model_of(payload: bytes) -> tuple[str, str]:
    """Name and version a ModelInferRequest asks for; where they come first, as usual, without parsing the rest."""
    name, at = _leading_text(payload, 0, _NAME_TAG)
    if name is None:
        message = _parse(payload)
        return message.model_name, message.model_version
    version, _ = _leading_text(payload, at, _VERSION_TAG)
    return name, version or ""


def _leading_text(payload: bytes, at: int, tag: int) -> tuple[str | None, int]:
    """A string field at `at` of the wire format, if that is what is there and it is shorter than 128 bytes."""
    if len(payload) < at + 2 or payload[at] != tag or payload[at + 1] >= 128:
        return None, at
    end = at + 2 + payload[at + 1]
    try:
        return payload[at + 2 : end].decode(), end
    except UnicodeDecodeError:
        return None, at


def _parse(payload: bytes) -> Any:
    try:
        return pb.ModelInferRequest.FromString(payload)
    except DecodeError:
        raise InvalidInput("the message is not a valid inference.ModelInferRequest") from None


def _timeout_us(body: bytes, header_length: int | None) -> int | None:
    body = body[: header_length or len(body)]
    if b'"timeout"' not in body:
        return None
    try:
        timeout_us = msgspec.json.decode(body, type=_Head).parameters.get("timeout")
    except Undecodable:
        return None
    return timeout_us if type(timeout_us) is int and timeout_us > 0 else None


def _header_length(payload: HttpRequest) -> int | None:
    text = payload.head.header(_HEADER_LENGTH.encode())
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InvalidInput(
            f"header Inference-Header-Content-Length is {text[:40]!r}; allowed: a number of bytes",
            field="Inference-Header-Content-Length",
        )
    return int(text)


def unknown_model(name: str, version: str) -> NotFound:
    """The error for a model nobody serves, in the words Triton's users know."""
    suffix = f" version {version[:32]}" if version else ""
    return NotFound(f"Request for unknown model: '{name[:128]}'{suffix} is not found")
