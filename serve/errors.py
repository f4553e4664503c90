"""The errors a caller can meet, without any protocol's status codes (those are in `serve.ingress.status`).

HeadroomError
├── InvalidInput        my request: a field is wrong               (field, got, allowed)
├── NotFound            my request: no such model, version, route
├── Unsupported         my request: understood, not offered here
│   └── UnsupportedEncoding   my request: compressed in a way that is not offered
├── Forbidden           my request: not from this origin, not with these rights
├── TooLarge            my request: over a published size
├── Overloaded          my timing: a queue is full or the budget cannot be met   (reason, retry_after_ms)
├── DeadlineExceeded    my timing: the deadline passed
├── Cancelled           my timing: the client left
├── NotReady            your state: starting, draining, model not loaded
│   └── AddressInUse    your state: another process has the port
├── ModelLoadError      your state: a model file is missing, damaged or not understood
├── ModelFailed         your model: its own code failed, and said this
├── DependencyFailed    your dependency: store, remote model
└── Internal            your bug: logged with the request id, its text never sent
"""

from __future__ import annotations

from typing import Literal

OverloadReason = Literal["queue_full", "budget", "concurrency", "connections", "draining_queue", "stream_backlog"]


class HeadroomError(Exception):
    """Base of everything the server answers on purpose. `message` is safe to send."""

    kind = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(HeadroomError):
    """A field of the request is wrong; `field` is its path, for example `transactions[3].amount`."""

    kind = "invalid_input"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFound(HeadroomError):
    """No such model, version, region or route."""

    kind = "not_found"


class Unsupported(HeadroomError):
    """Understood, but not offered by this server or model."""

    kind = "unsupported"


class UnsupportedEncoding(Unsupported):
    """The body is compressed in a way that is not offered."""


class Forbidden(HeadroomError):
    """Not from this origin or not with these rights."""

    kind = "forbidden"


class TooLarge(HeadroomError):
    """Over one of the published sizes."""

    kind = "too_large"


class Overloaded(HeadroomError):
    """Refused before any work was done; safe to retry after `retry_after_ms`. `reason` names the bound."""

    kind = "overloaded"

    def __init__(self, message: str, *, reason: OverloadReason, retry_after_ms: int = 100) -> None:
        super().__init__(message)
        self.reason: OverloadReason = reason
        self.retry_after_ms = retry_after_ms


class DeadlineExceeded(HeadroomError):
    """The deadline passed before there was an answer."""

    kind = "deadline_exceeded"


class Cancelled(HeadroomError):
    """The client left before there was an answer."""

    kind = "cancelled"


class NotReady(HeadroomError):
    """Starting, draining, or the model is not loaded."""

    kind = "not_ready"


class AddressInUse(NotReady):
    """A configured port belongs to another process; the message names its pid where it can be seen."""


class ModelLoadError(HeadroomError):
    """A model's file is missing, damaged or not understood; the message names the file and why."""

    kind = "not_ready"


class ModelFailed(HeadroomError):
    """A model's own code failed; the text is the model's."""

    kind = "model_failed"


class DependencyFailed(HeadroomError):
    """A store or a remote model failed and no rung of the ladder could stand in."""

    kind = "dependency_failed"


class Internal(HeadroomError):
    """A bug of ours. The text that is sent is fixed; the cause is in the log under the request id."""

    kind = "internal"

    def __init__(self, message: str = "internal error; the log has the cause under this request id") -> None:
        super().__init__(message)
