"""What waits, what comes back, and the seams between them: `Listener` (a protocol's server), `Codec` (one endpoint).

A listener makes an `Arrival` per request and pushes it into a collector; a runner takes it, has its route's codec
decode it, runs the flow and hands one `Answer` per arrival back to the listener it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from serve.batching.outcome import Outcome
from serve.context import RequestContext
from serve.errors import HeadroomError, NotReady, Overloaded
from serve.observability.metrics import PipelineMetrics

Payload = Any
"""Bytes as received, or a message already parsed by the listener. Only the endpoint's codec looks inside."""


class Encoded(Struct, frozen=True, gc=False):
    """An answer's body and what its headers must say beside the usual."""

    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200
    """HTTP status of an answer that is not an error as a whole; gRPC ignores it."""


class Decoded(NamedTuple):
    """A request's items, bad ones as errors, and what its codec needs of it to encode the answer."""

    items: Sequence[Outcome[Any]]
    request: Any = None


class Codec(Protocol):
    """One endpoint's way between wire and contract. Pure and thread-safe; one object per endpoint, not per request."""

    @property
    def endpoint(self) -> str:
        """Label of the endpoint in metrics and logs, from a closed set."""
        ...

    def count_items(self, payload: Payload) -> int:
        """Rows in the request, at least 1. Called at the edge for every arrival: a cheap guess before decoding."""
        ...

    def timeout_us(self, payload: Payload) -> int | None:
        """The time limit in the request's own body (OIP's `timeout`), in microseconds, if it carries one."""
        ...

    def decode(self, payload: Payload) -> Decoded:
        """The request's items. Raises HeadroomError when the request as a whole is wrong."""
        ...

    def encode(self, request: Any, outcomes: Sequence[Outcome[Any]]) -> Encoded:
        """The answer to what `decode` gave as `request`. A codec of single items raises the item's error; one of many
        puts it in that item's place.
        """
        ...


class StreamCodec(Codec, Protocol):
    """A codec of one message of a stream: there an error is a message too, because the stream goes on."""

    def encode_error(self, payload: Payload, error: HeadroomError) -> Encoded:
        """The message that stands for an item's error."""
        ...


class Entrance(Protocol):
    """Where a listener's thread leaves the arrivals of one pipeline; the runner."""

    def push(self, arrivals: Sequence[Arrival], now_ns: int) -> list[tuple[Arrival, Overloaded | NotReady]]:
        """Takes in what fits and returns the rest, each with its named reason. Nothing runs before `dispatch`."""
        ...

    def room(self, budget_ms: float) -> tuple[int, int]:
        """For a listener that has a queue of its own: how many to push next, and how many may wait there at most, so
        that the last of them is answered within `budget_ms`.
        """
        ...

    def dispatch(self, again: Callable[[], None] | None) -> bool:
        """Has what was pushed run: on this thread if that is short, or on a runner's. Whether to call again.

        `again` has this thread call once more, whichever thread it is called from; without it nothing runs here.
        """
        ...


class Route(Struct, frozen=True, eq=False):
    """What a listener needs to know of one endpoint of a pipeline or model."""

    codec: Codec
    entrance: Entrance
    budget_ms: float
    metrics: PipelineMetrics
    pipeline: str


class Arrival(Struct, eq=False):
    """One request between its listener and its runner."""

    context: RequestContext
    payload: Payload
    """Freed once the request is answered: what waits for its deadline in a timing wheel holds no bodies."""
    route: Route
    items: int
    listener: Listener
    token: Any
    """What the listener needs to answer: a connection, a future, a stream."""
    is_answered: bool = False
    """Set by the listener, by whoever is first: result, deadline or departure."""


class Answer(Struct, eq=False):
    """What the runner has for one arrival: a body or an error, never both."""

    arrival: Arrival
    encoded: Encoded | None
    error: HeadroomError | None
    queue_ns: int = 0
    server_timing: str = ""
    """The batch's stages, as `budgets.timings.server_timing` writes them."""
    degraded: tuple[str, ...] = ()
    """What was left out, of any of its items."""


class Listener(Protocol):
    """One protocol's server inside a replica. `reply` may be called from any thread and never blocks."""

    def start(self) -> None:
        """Begins to accept; returns once it does."""
        ...

    def drain(self, deadline_ns: int) -> None:
        """Stops accepting, lets what was accepted finish until the monotonic `deadline_ns`, closes. Blocks."""
        ...

    def reply(self, answers: Sequence[Answer]) -> None:
        """Sends one batch's answers; those whose request was answered or left meanwhile are dropped."""
        ...
