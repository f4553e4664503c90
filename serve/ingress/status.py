"""Errors to status codes, one table per protocol. Nothing else in the server knows a code."""

from __future__ import annotations

from serve.errors import HeadroomError, InvalidInput, Overloaded, UnsupportedEncoding

HTTP_STATUS: dict[str, int] = {
    "invalid_input": 400,
    "forbidden": 403,
    "not_found": 404,
    "too_large": 413,
    "overloaded": 429,
    "cancelled": 499,
    "internal": 500,
    "model_failed": 500,
    "unsupported": 501,
    "dependency_failed": 503,
    "not_ready": 503,
    "deadline_exceeded": 504,
}

GRPC_STATUS: dict[str, int] = {
    "cancelled": 1,
    "invalid_input": 3,
    "deadline_exceeded": 4,
    "not_found": 5,
    "forbidden": 7,
    "overloaded": 8,
    "too_large": 8,
    "unsupported": 12,
    "internal": 13,
    "model_failed": 13,
    "dependency_failed": 14,
    "not_ready": 14,
}

SERVER_BOUNDS = frozenset({"concurrency", "connections"})
"""Overload of the server as a whole (503), not of one pipeline's queue (429)."""

REASON_PHRASES: dict[int, str] = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def http_status(error: HeadroomError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Overloaded) and error.reason in SERVER_BOUNDS:
        return 503
    if isinstance(error, UnsupportedEncoding):
        return 415
    return HTTP_STATUS[error.kind]


def grpc_status(error: HeadroomError) -> int:
    """The gRPC status of an error, as its number."""
    return GRPC_STATUS[error.kind]


def error_body(error: HeadroomError, request_id: str) -> dict[str, object]:
    """The JSON body of an error over HTTP; `error` holds the text, which is the key that Triton's clients read."""
    body: dict[str, object] = {"error": error.message, "kind": error.kind, "request_id": request_id}
    if isinstance(error, InvalidInput) and error.field is not None:
        body["field"] = error.field
    if isinstance(error, Overloaded):
        body["reason"] = error.reason
        body["retry_after_ms"] = error.retry_after_ms
    return body
