"""What gRPC's metadata says of a call, and what it says of an answer."""

from __future__ import annotations

from collections.abc import Mapping

from serve.batching.arrival import Answer
from serve.budgets.deadline import Deadline, parse_timeout_ms
from serve.context import RequestContext, RequestIds, is_request_id, is_traceparent
from serve.errors import HeadroomError, InvalidInput, Overloaded

Trailing = tuple[tuple[str, str], ...]


def timeout_ms(metadata: Mapping[str, str | bytes]) -> tuple[float | None, HeadroomError | None]:
    """`x-request-timeout-ms`, and what is wrong with it, if anything is."""
    text = metadata.get("x-request-timeout-ms")
    if not isinstance(text, str):
        return None, None
    try:
        return parse_timeout_ms(text), None
    except HeadroomError as error:
        return None, error


def call_context(
    metadata: Mapping[str, str | bytes], ids: RequestIds, arrived_ns: int, deadline: Deadline
) -> RequestContext:
    """The call's context: its own ids, where they may be echoed."""
    given_id, traceparent = metadata.get("x-request-id"), metadata.get("traceparent")
    request_id = given_id if isinstance(given_id, str) and is_request_id(given_id) else ids.make()
    if not isinstance(traceparent, str) or not is_traceparent(traceparent):
        traceparent = None
    return RequestContext(request_id, deadline, arrived_ns, traceparent)


def answer_trailing(answer: Answer) -> Trailing:
    """Ids and stage times; of an error, what it is."""
    context = answer.arrival.context
    trailing: Trailing = (
        ("x-request-id", context.request_id),
        ("server-timing", f"queue;dur={answer.queue_ns / 1e6:.3f}{answer.server_timing}"),
    )
    if context.traceparent is not None:
        trailing += (("traceparent", context.traceparent),)
    return trailing if answer.error is None else trailing + error_trailing(answer.error)


def error_trailing(error: HeadroomError) -> Trailing:
    """Kind, field, reason, and when to come back: `grpc-retry-pushback-ms` is what gRPC's own retries obey."""
    trailing: Trailing = (("error-kind", error.kind),)
    if isinstance(error, InvalidInput) and error.field is not None:
        trailing += (("error-field", error.field.encode("ascii", "backslashreplace").decode()),)
    if isinstance(error, Overloaded):
        after_ms = str(error.retry_after_ms)
        trailing += (
            ("error-reason", error.reason), ("retry-after-ms", after_ms), ("grpc-retry-pushback-ms", after_ms),
        )  # fmt: skip
    return trailing
