"""What one HTTP request is to the listener: the parsed head, the body, and how its answer is put on the wire.

Pure. Called by the connection (in) and by the listener (out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from serve.ingress.status import REASON_PHRASES

if TYPE_CHECKING:
    from serve.context import RequestContext
    from serve.ingress.http_connection import HttpConnection

Headers = dict[bytes, bytes]
HeaderItems = tuple[tuple[str, str], ...]


class HttpRequest(Struct, eq=False):
    """One complete request. `headers` has lower-case names; of a repeated one the last stands."""

    connection: HttpConnection
    method: bytes
    target: bytes
    """As received: path and query."""
    headers: Headers
    body: bytes
    keep_alive: bool
    arrived_ns: int
    context: RequestContext | None = None
    raw_headers: list[tuple[bytes, bytes]] = []

    @property
    def path(self) -> bytes:
        """The target without its query, still percent-encoded."""
        return self.target.partition(b"?")[0]

    def header(self, name: bytes) -> str | None:
        """A header as text; bytes beyond ASCII are read as Latin-1, as HTTP defines them."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


_STATUS_LINES = {code: f"HTTP/1.1 {code} {phrase}\r\n" for code, phrase in REASON_PHRASES.items()}


def status_line(status: int) -> str:
    """`HTTP/1.1 200 OK` with its line end."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status\r\n"


def head(status: int, content_type: str, length: int, headers: HeaderItems, *, keep_alive: bool) -> bytes:
    """An answer's head. Header values come from the server or were checked to be printable ASCII."""
    text = f"{status_line(status)}content-type: {content_type}\r\ncontent-length: {length}\r\n"
    if headers:
        text += "".join([f"{name}: {value}\r\n" for name, value in headers])
    text += "\r\n" if keep_alive else "connection: close\r\n\r\n"
    return text.encode("latin-1")
