from collections.abc import Sequence

Metadata = Sequence[tuple[str, str | bytes]]
Answer = tuple["Call", int, bytes | None, str, Metadata | None]

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
    @property
    def is_settled(self) -> bool:
        """Answered, expired or cancelled."""

class Transport:
    """I/O threads behind one inbox. One thread takes; any may reply."""

    def __init__(
        self,
        *,
        listener: int,
        num_threads: int,
        limits: dict[str, int],
        num_groups: int,
        routes: Sequence[tuple[int, int, str, Metadata | None]],
        methods: dict[str, tuple[bool, bool, int, int]],
        models: Sequence[tuple[str, str, int]],
        tls: tuple[str, str, str] | None,
    ) -> None:
        """`routes`: group, budget in ns, what a full queue says, its trailers; the first is for unknown paths. `methods`:
        by path, whether unary, whether its message names a model, route, credit. `models`: name, version, route.
        """

    def start(self) -> None: ...
    def take(
        self, timeout_s: float
    ) -> tuple[list[tuple[Call, bytes, int, int, int, bool]], list[tuple[Call, int, bytes, int]]]:
        """Requests (call, payload, route, arrived_ns, deadline_ns, has_metadata) and events (call, kind, payload, code)."""

    def reply(self, answers: list[Answer]) -> list[int] | None:
        """Ends calls: code, body, message, trailers. Gives the indexes of those that had ended before."""

    def reply_ok(self, answers: list[tuple[Call, bytes, str, int]], stages: str) -> list[int] | None:
        """`reply` for one batch of good answers: body, request id, ns in the queue; `stages` as `Server-Timing` has them."""

    def send(self, call: Call, body: bytes | None, initial_metadata: Metadata | None = None) -> int:
        """A message of a stream; gives how many bytes the client has not taken yet."""

    def grant(self, call: Call, messages: int) -> None: ...
    def limit(self, call: Call, deadline_ns: int) -> None: ...
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
