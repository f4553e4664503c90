"""What a call can raise, in the words of the server's own error kinds. HTTP and gRPC raise the same tree.

HeadroomClientError
├── InvalidInput        a field of the request is wrong             (field)
├── NotFound            no such model, version, route
├── Unsupported         understood, not offered by this server
├── Forbidden           not from here, not with these rights
├── TooLarge            over a published size
├── Overloaded          refused before any work                     (retry_after_ms)
├── NotReady            starting, draining, model not loaded
├── DeadlineExceeded    the deadline passed, here or at the server
├── Cancelled           the call was cancelled
├── ModelFailed         the model's own code failed, and said this
├── DependencyFailed    something that the server depends on failed
├── Internal            a bug of the server; its log has the cause under request_id
├── ConnectionFailed    no server there, or the connection broke before an answer
└── UnexpectedAnswer    an answer that this client does not understand
"""

from __future__ import annotations

from typing import ClassVar


class HeadroomClientError(Exception):
    """Base of everything a call raises on purpose.

    `kind` is the server's word, also one this client has no class for; `field` is the path of the wrong field, for
    example `transactions[3].amount`; `request_id` finds the call in the server's log; `retry_after_ms` is the server's
    wish. `is_retryable` says that the same call may succeed later; the client has then already used up its own tries.
    """

    default_kind: ClassVar[str] = "unknown"

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        field: str | None = None,
        request_id: str | None = None,
        retry_after_ms: float | None = None,
        is_retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind or self.default_kind
        self.field = field
        self.request_id = request_id
        self.retry_after_ms = retry_after_ms
        self.is_retryable = is_retryable


class InvalidInput(HeadroomClientError):
    """A field of the request is wrong; `field` names it."""

    default_kind = "invalid_input"


class NotFound(HeadroomClientError):
    """No such model, version or route."""

    default_kind = "not_found"


class Unsupported(HeadroomClientError):
    """Understood, but not offered by this server."""

    default_kind = "unsupported"


class Forbidden(HeadroomClientError):
    """Not from this origin or not with these rights."""

    default_kind = "forbidden"


class TooLarge(HeadroomClientError):
    """Over one of the server's published sizes."""

    default_kind = "too_large"


class Overloaded(HeadroomClientError):
    """Refused before any work was done, on every try that the deadline and the retry budget allowed."""

    default_kind = "overloaded"


class NotReady(HeadroomClientError):
    """Starting, draining, or the model is not loaded."""

    default_kind = "not_ready"


class DeadlineExceeded(HeadroomClientError):
    """The deadline passed before there was an answer. The server may still have decided; ask again with the same id."""

    default_kind = "deadline_exceeded"


class Cancelled(HeadroomClientError):
    """The call was cancelled before there was an answer."""

    default_kind = "cancelled"


class ModelFailed(HeadroomClientError):
    """The model's own code failed; the message is the model's."""

    default_kind = "model_failed"


class DependencyFailed(HeadroomClientError):
    """A store, a remote model or a gateway on the way failed."""

    default_kind = "dependency_failed"


class Internal(HeadroomClientError):
    """A bug of the server."""

    default_kind = "internal"


class ConnectionFailed(HeadroomClientError):
    """Nobody listens there, or the connection broke before an answer."""

    default_kind = "connection_failed"


class UnexpectedAnswer(HeadroomClientError):
    """The answer does not have the agreed shape: another server, or one of another version."""

    default_kind = "unexpected_answer"


_CLASSES: dict[str, type[HeadroomClientError]] = {cls.default_kind: cls for cls in HeadroomClientError.__subclasses__()}


def error_class(kind: str) -> type[HeadroomClientError]:
    """The class for a server's kind; the base class for a kind that this client does not know."""
    return _CLASSES.get(kind, HeadroomClientError)


MEANS_NOT_READY = (NotReady, Overloaded, ConnectionFailed, DeadlineExceeded)
"""What `ready()` answers with False."""
