"""One HTTP/1.1 connection: bytes in, complete requests out to the listener; answers written back in order.

Hot: about 10 µs a request (see benchmarks/fraud.py). It replaces uvicorn's protocol class because of what that one
lacks: a bound on the header's size, on the number of connections, on how long a header, a body or a reader may take,
and a way past ASGI for the routes that are answered in batches.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import deque
from typing import Any, Protocol

import httptools

from serve.errors import HeadroomError, InvalidInput, TooLarge
from serve.ingress.http_request import HeadMemory, HttpRequest, RequestHead
from serve.settings import Limits

_MAX_PIPELINED = 32
_FRAMING_PER_BYTE = 8
"""Of a chunked body: a chunk of one byte has six bytes with its frame."""
_LAST_DATA_RECV = slice(52, 56)
"""Of `struct tcp_info` (linux/tcp.h)."""
_KERNEL_STEP_MS = 4
"""At 250 Hz, Debian's and Ubuntu's default."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Endpoint(Protocol):
    """What a connection needs from its listener."""

    limits: Limits
    is_draining: bool
    heads: HeadMemory

    def arrived_ns(self, connection: HttpConnection) -> int: ...

    def on_request(self, request: HttpRequest) -> None: ...

    def on_bad_request(self, connection: HttpConnection, error: HeadroomError, status: int, reason: str) -> None: ...

    def on_opened(self, connection: HttpConnection) -> bool: ...

    def on_closed(self, connection: HttpConnection) -> None: ...


class HttpConnection(asyncio.Protocol):
    """Belongs to the listener's event loop. One request is in flight at a time; pipelined ones wait, bounded."""

    __slots__ = (
        "_all_body_bytes", "_body", "_body_bytes", "_endpoint", "_expires_ns", "_has_begun", "_head_bytes", "_headers",
        "_is_parsing_head", "_is_write_paused", "_last_head", "_parser", "_raw_headers", "_refused", "_socket",
        "_target", "_waiting", "current", "is_closing", "since_ns", "transport", "writable",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[HttpRequest] = deque()
        self._target = b""
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._all_body_bytes = self._body_bytes = 0
        self._head_bytes = 0
        self._has_begun = False
        self._is_parsing_head = True
        self._is_write_paused = False
        self._refused: _Refused | None = None
        self._last_head: RequestHead | None = None
        self.current: HttpRequest | None = None
        self.is_closing = False
        self.since_ns = time.monotonic_ns()
        self._expires_ns = self.since_ns + int(endpoint.limits.max_connection_age_s * 1e9)
        self.transport: asyncio.Transport
        self._socket: Any
        self.writable: asyncio.Event | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._socket = transport.get_extra_info("socket")
        if not self._endpoint.on_opened(self):
            self.is_closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closing = True
        if self.current is not None and self.current.context is not None:
            self.current.context.cancelled = True
        self._waiting.clear()
        if self.writable is not None:
            self.writable.set()
        self._endpoint.on_closed(self)

    def data_received(self, data: bytes) -> None:
        if self.is_closing or self._refused is not None:
            return
        if self._has_begun:
            self._feed(data)
            return
        known = self._endpoint.heads.find(data) if self.current is None else None
        if known is not None:
            self._enter(HttpRequest(self, *known, self._endpoint.arrived_ns(self)))
            return
        self._last_head = None
        self._feed(data)
        if self._last_head is not None and not self._has_begun:
            self._endpoint.heads.remember(data, self._last_head)

    def _feed(self, data: bytes) -> None:
        self._head_bytes += len(data)
        before = self._all_body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer, which a server may leave unanswered (RFC 9110, 7.8). The parser takes what follows the head for
            # another protocol's, so a new one reads the request as if the offer had not been made.
            head = self._head_without_offer()
            self._parser = httptools.HttpRequestParser(self)
            self._head_bytes = 0
            self._feed(head + data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _Refused):
                raise
            self._refuse(cause)
            return
        except httptools.HttpParserError:
            self._refuse(_Refused(InvalidInput("the request is not valid HTTP/1.1"), 400, "malformed"))
            return
        if not self._has_begun:
            self._head_bytes = 0
        elif not self._is_parsing_head:
            # What is neither head nor body: a chunked body's framing, in proportion to it, and what follows it.
            self._head_bytes -= min(self._head_bytes, _FRAMING_PER_BYTE * (self._all_body_bytes - before))
        if self._head_bytes > self._endpoint.limits.max_header_bytes:
            self._refuse(_Refused(self._too_large_header(), 431, "header_size"))

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self.since_ns = time.monotonic_ns()
        self.transport.pause_reading()
        if self.writable is None:
            self.writable = asyncio.Event()
        self.writable.clear()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self.writable is not None:
            self.writable.set()
        self._resume_reading()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._has_begun = True
        self._target = b""
        self._raw_headers = []
        self._body = []
        self._body_bytes = 0
        self.since_ns = time.monotonic_ns()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._raw_headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_parsing_head = False
        limits = self._endpoint.limits
        if self._head_bytes > limits.max_header_bytes and self._measured_head_bytes() > limits.max_header_bytes:
            raise _Refused(self._too_large_header(), 431, "header_size")
        self._head_bytes = 0
        self.since_ns = time.monotonic_ns()
        headers = self._headers = dict(self._raw_headers)
        num_hosts = sum([name == b"host" for name, _ in self._raw_headers])
        if num_hosts != 1 and (num_hosts > 1 or self._parser.get_http_version() == "1.1"):
            raise _Refused(InvalidInput(f"the request has {num_hosts} Host headers; allowed 1"), 400, "malformed")
        if self._parser.get_method() == b"CONNECT":
            raise _Refused(InvalidInput("method CONNECT is not offered; see /docs"), 501, "malformed")
        length = int(headers.get(b"content-length", b"0"))
        if length > limits.max_body_bytes:
            raise _Refused(self._too_large_body(f"{length} bytes"), 413, "body_size")
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        self._all_body_bytes += len(body)
        if self._body_bytes > self._endpoint.limits.max_body_bytes:
            raise _Refused(self._too_large_body(f"more than {self._body_bytes} bytes"), 413, "body_size")

    def _head_without_offer(self) -> bytes:
        version = self._parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), self._target, version)]
        lines += [name + b": " + value for name, value in self._raw_headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        self._is_parsing_head = True
        self._has_begun = False
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        keep_alive = self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1"
        method, target = self._parser.get_method(), _origin_form(self._target)
        head = self._last_head = RequestHead(method, target, self._headers, self._raw_headers, keep_alive)
        self._enter(HttpRequest(self, head, body, self._endpoint.arrived_ns(self)))

    def _enter(self, request: HttpRequest) -> None:
        if self.current is None:
            self.current = request
            self._endpoint.on_request(request)
        elif len(self._waiting) < _MAX_PIPELINED:
            self._waiting.append(request)
            self.transport.pause_reading()
        else:
            raise _Refused(InvalidInput(f"more than {_MAX_PIPELINED} pipelined requests"), 400, "pipelined")

    # What the listener calls.

    def unseen_ms(self) -> int:
        """For how long, at least, what was just read had lain in the socket: Linux's `tcpi_last_data_recv`, less one step
        of the kernel's clock.
        """
        info: bytes = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV.stop)
        return max(0, int.from_bytes(info[_LAST_DATA_RECV], sys.byteorder) - _KERNEL_STEP_MS)

    @property
    def must_close(self) -> bool:
        """Whether the answer in flight is the connection's last."""
        request = self.current
        return (
            self.is_closing
            or self._endpoint.is_draining
            or (request is not None and not request.head.keep_alive)
            or self.since_ns > self._expires_ns
        )

    def finish(self, request: HttpRequest, data: bytes, *, keep_alive: bool) -> None:
        """Writes the last bytes of the answer to `request` and goes on to what was pipelined behind it."""
        if self.current is not request:
            return
        if data:
            self.transport.write(data)
        self.current = None
        self.since_ns = time.monotonic_ns()
        if not keep_alive:
            self.is_closing = True
            self._waiting.clear()
            self.transport.close()
        elif self._waiting:
            self.current = self._waiting.popleft()
            self._endpoint.on_request(self.current)
        elif self._refused is not None:
            self._refuse(self._refused)
        else:
            self._resume_reading()

    def stalled(self, now_ns: int) -> str | None:
        """Which of the limits on time this connection is over, if any: `header`, `body`, `write` or `idle`."""
        limits = self._endpoint.limits
        waited_s = (now_ns - self.since_ns) / 1e9
        if self._is_write_paused:
            return "write_timeout" if waited_s > limits.write_timeout_s else None
        if self.current is not None:
            return None
        if not self._is_parsing_head:
            return "body_timeout" if waited_s > limits.body_timeout_s else None
        if self._has_begun:
            return "header_timeout" if waited_s > limits.header_timeout_s else None
        return "idle_timeout" if waited_s > limits.idle_timeout_s else None

    def is_idle_since(self, then_ns: int) -> bool:
        """Whether nothing is in flight and nothing has arrived since `then_ns`."""
        return self.current is None and not self._has_begun and self.since_ns < then_ns

    def _resume_reading(self) -> None:
        if not self._waiting and not self._is_write_paused and not self.is_closing:
            self.transport.resume_reading()

    def _measured_head_bytes(self) -> int:
        """The head alone: what was received with it may hold a body."""
        return len(self._target) + sum([len(name) + len(value) + 4 for name, value in self._raw_headers])

    def _refuse(self, refused: _Refused) -> None:
        """Answers what is no request, behind the answers that are still owed, and ends the connection."""
        if self.current is not None:
            self._refused = refused
            self.transport.pause_reading()
            return
        self.is_closing = True
        self._endpoint.on_bad_request(self, refused.error, refused.status, refused.reason)

    def _too_large_header(self) -> TooLarge:
        return TooLarge(
            f"the request's header is over {self._endpoint.limits.max_header_bytes} bytes, which are allowed"
        )

    def _too_large_body(self, got: str) -> TooLarge:
        return TooLarge(f"the request's body has {got}; allowed {self._endpoint.limits.max_body_bytes} bytes")


def _origin_form(target: bytes) -> bytes:
    """A target as proxies write it (absolute form; RFC 9112, 3.2.2) without its scheme and authority."""
    if target[:1] == b"/" or not target.startswith((b"http://", b"https://")):
        return target
    return b"/" + target.partition(b"//")[2].partition(b"/")[2]


class _Refused(Exception):
    """Carries a refusal out of a parser callback."""

    def __init__(self, error: HeadroomError, status: int, reason: str) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status
        self.reason = reason
