"""What one HTTP request is to the listener: the parsed head, the body, and how its answer is put on the wire.

Pure. Called by the connection (in) and by the listener (out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from serve.ingress.status import REASON_PHRASES

if TYPE_CHECKING:
    from serve.context import RequestContext
    from serve.ingress.http_connection import HttpConnection

Headers = dict[bytes, bytes]
HeaderItems = tuple[tuple[str, str], ...]

_MAX_REMEMBERED = 512
_MAX_REMEMBERED_BYTES = 2048


class RequestHead(Struct, eq=False):
    """A request's head, parsed. A client sends the same bytes again and again, so one may belong to many requests.

    `headers` has lower-case names; of a repeated one the last stands.
    """

    method: bytes
    target: bytes
    """As received: path and query."""
    headers: Headers
    raw_headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    understood: Any = None
    """What the listener concluded from it, once for all requests that share it."""

    @property
    def path(self) -> bytes:
        """The target without its query, still percent-encoded."""
        return self.target.partition(b"?")[0]

    def header(self, name: bytes) -> str | None:
        """A header as text; bytes beyond ASCII are read as Latin-1, as HTTP defines them."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class HttpRequest(Struct, eq=False):
    """One complete request."""

    connection: HttpConnection
    head: RequestHead
    body: bytes
    arrived_ns: int
    context: RequestContext | None = None

    @property
    def headers(self) -> Headers:
        """By lower-case name."""
        return self.head.headers


class HeadMemory:
    """Heads that were parsed before, by their bytes: a repeated one costs a look-up instead of a parser's ten calls.

    Safe because what is remembered is what the parser made of these very bytes, the whole of a message with a plain
    body. Bounded: when it is full, it starts anew.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[RequestHead, int]] = {}

    def find(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """The head and body of the one whole request that `data` is, if its head is known."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._known.get(data[:end])
        if known is None or len(data) != end + known[1]:
            return None
        return known[0], data[end:]

    def remember(self, data: bytes, head: RequestHead) -> None:
        """Takes the head of `data`, which the parser read as exactly one request."""
        end = data.find(b"\r\n\r\n") + 4
        raw = data[:end]
        length = len(data) - end
        is_plain = b"transfer-encoding" not in head.headers and b"expect" not in head.headers
        if (
            is_plain
            and 4 <= end <= _MAX_REMEMBERED_BYTES
            and raw.count(b"\n") == raw.count(b"\r\n") == len(head.raw_headers) + 2
            and length == int(head.headers.get(b"content-length", b"0"))
        ):
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[raw] = head, length


_STATUS_LINES = {code: f"HTTP/1.1 {code} {phrase}\r\n" for code, phrase in REASON_PHRASES.items()}


def status_line(status: int) -> str:
    """`HTTP/1.1 200 OK` with its line end."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status\r\n"


def header_lines(headers: HeaderItems) -> str:
    """Headers as they stand in a head."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def head(status: int, content_type: str, length: int, lines: str, *, keep_alive: bool) -> bytes:
    """An answer's head; `lines` are further headers, whose values come from the server or are printable ASCII."""
    end = "" if keep_alive else "connection: close\r\n"
    text = f"{status_line(status)}content-type: {content_type}\r\ncontent-length: {length}\r\n{lines}{end}\r\n"
    return text.encode("latin-1")
