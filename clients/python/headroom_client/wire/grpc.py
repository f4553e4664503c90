"""gRPC statuses and trailing metadata in the client's words.

In: a call's status, details and trailing metadata. Out: a Reply, or the error that they stand for. Called by the gRPC
clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.wrappers_pb2 import Int32Value

from headroom_client.errors import HeadroomClientError, error_class
from headroom_client.timing import parse_server_timing
from headroom_client.wire.http import non_negative
from headroom_client.wire.operation import Operation, Reply

_KINDS = {
    "CANCELLED": "cancelled",
    "INVALID_ARGUMENT": "invalid_input",
    "OUT_OF_RANGE": "invalid_input",
    "DEADLINE_EXCEEDED": "deadline_exceeded",
    "NOT_FOUND": "not_found",
    "PERMISSION_DENIED": "forbidden",
    "UNAUTHENTICATED": "forbidden",
    "UNIMPLEMENTED": "unsupported",
    "INTERNAL": "internal",
    "UNKNOWN": "internal",
}
"""Statuses that mean one thing each. Those not here, and not in `_kind`, are unexpected answers."""

_RETRYABLE_KINDS = frozenset({"overloaded", "not_ready", "dependency_failed", "connection_failed"})


def text_metadata(metadata: Iterable[Any] | None) -> dict[str, str]:
    """Trailing metadata, pairs of name and value, by name and without the binary entries."""
    return {name: value for name, value in metadata or () if isinstance(value, str)}


def grpc_reply(body: bytes, metadata: Mapping[str, str], request_id: str) -> Reply:
    """Reads a call that ended OK; `request_id` is the one that was sent."""
    timing = parse_server_timing(metadata.get("server-timing"))
    return Reply(body, metadata.get("x-request-id", request_id), timing)


def grpc_error(code: str, details: str, metadata: Mapping[str, str], request_id: str) -> HeadroomClientError:
    """Reads a call that ended with status `code`, for example "UNAVAILABLE"."""
    kind = metadata.get("error-kind") or _kind(code, metadata)
    return error_class(kind)(
        details or f"the call ended with gRPC status {code}",
        kind=kind,
        field=metadata.get("error-field"),
        request_id=metadata.get("x-request-id", request_id),
        retry_after_ms=non_negative(metadata.get("retry-after-ms")),
        is_retryable=code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and kind in _RETRYABLE_KINDS,
    )


def _kind(code: str, metadata: Mapping[str, str]) -> str:
    match code:
        case "RESOURCE_EXHAUSTED":  # a refusal names its wait; without one it is a message over a size limit
            return "overloaded" if "retry-after-ms" in metadata else "too_large"
        case "UNAVAILABLE":  # the server echoes the request id; gRPC's own library, when a connection breaks, does not
            return "not_ready" if "x-request-id" in metadata else "connection_failed"
        case _:
            return _KINDS.get(code, "unexpected_answer")


def _everything(_: None) -> bytes:
    return b""


def _decode_health(reply: Reply) -> bool:
    return Int32Value.FromString(reply.body).value == 1


# grpc.health.v1: an empty request asks for the whole server, SERVING is 1. HealthCheckResponse{status = 1} has the wire
# form of Int32Value{value = 1}, which protobuf ships, so that no package is needed for one field.
READY: Operation[None, bool] = Operation(
    "/grpc.health.v1.Health/Check", _everything, _decode_health, is_repeatable=False
)
