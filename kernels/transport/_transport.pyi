from collections.abc import Sequence

Metadata = Sequence[tuple[str, str | bytes]]
Answer = tuple["Call", int, bytes | None, str, Metadata | None]
"""Call, status code, body, message, trailers."""
GoodAnswer = tuple["Call", bytes, str, int]
"""Call, body, request id, ns in the queue."""
Request = tuple["Call", bytes, int, int, int, bool]
"""Call, payload, route, arrived_ns, deadline_ns, has_metadata."""
Event = tuple["Call", int, bytes, int]
"""Call, kind, payload of a message, status code of an end."""

EVENT_KINDS: dict[str, int]

class Call:
    """One gRPC call. Holding it costs its metadata; the stream may have ended."""

    @property
    def id(self) -> int: ...
    @property
    def route(self) -> int: ...
    @property
    def arrived_ns(self) -> int: ...
    @property
    def deadline_ns(self) -> int:
        """Of the monotonic clock; 0 for a stream without one."""
    @property
    def has_metadata(self) -> bool:
        """Anything beside what every client sends."""
    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]: ...
    @property
    def peer(self) -> str: ...

class Transport:
    """I/O threads behind one inbox. One thread takes; any may reply."""

    def __init__(
        self,
        *,
        listener: int,
        num_threads: int,
        limits: dict[str, int],
        tls: tuple[str, str, str] | None,
    ) -> None: ...
    def serve(
        self,
        routes: Sequence[tuple[int, int, str, Metadata | None]],
        methods: dict[str, tuple[bool, bool, int, int]],
        models: Sequence[tuple[str, str, int]],
    ) -> None:
        """What is served from now on. `routes`: group, budget in ns, what a full queue says, its trailers; the first is for
        unknown paths, and a route keeps its number and group for ever. `methods`: by path, whether unary, whether its
        message names a model, route, credit. `models`: name, version, route.
        """

    def start(self) -> None: ...
    def take(self, timeout_s: float) -> tuple[list[Request], list[Event]]:
        """Everything that has arrived, and that there is room for."""

    def reply(self, answers: list[Answer]) -> list[int] | None:
        """Ends calls. Gives the indexes of those that had ended before."""

    def reply_ok(self, answers: list[GoodAnswer], stages: str) -> list[int] | None:
        """`reply` for one batch of good answers; `stages` as `Server-Timing` has them."""

    def send(self, call: Call, body: bytes | None, initial_metadata: Metadata | None = None) -> bool:
        """A message of a stream. Whether answers pile up: nothing more should be sent before the event `writable`."""

    def grant(self, call: Call, messages: int) -> None: ...
    def limit(self, call: Call, deadline_ns: int) -> None:
        """Sets the call's deadline anew."""
    def set_bound(self, group: int, bound: int) -> None: ...
    def set_room(self, group: int, room: int) -> None: ...
    def waiting(self, group: int) -> int: ...
    def wake(self) -> None: ...
    def tallies(self) -> list[tuple[int, list[int]]]:
        """By route: queue_full, memory, concurrency, expired, cancelled, invalid; of calls that were never taken."""

    def load_tls(self, files: tuple[str, str, str]) -> None:
        """For connections to come. Raises RuntimeError, and changes nothing, where they are wrong."""

    def drain(self, deadline_ns: int) -> bool:
        """Stops accepting and says goodbye; whether every connection has gone by then. Blocks."""

    def stop(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
