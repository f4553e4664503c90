"""The bridge to ASGI for everything that is not hot: health, metadata, documentation, pages, token streams.

Enters: complete, bounded requests. Leaves: answers in one piece, or chunked as the application sends them, at the pace
the client reads. Belongs to the listener's loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from serve.errors import Internal
from serve.ingress.http_connection import HttpConnection
from serve.ingress.http_request import HttpRequest, status_line
from serve.ingress.status import error_body

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
OnFinished = Callable[[HttpRequest, str, int, int, str | None], None]

_WITHOUT_BODY = (204, 304)
"""RFC 9112, section 6.3: such an answer ends with its head, and says nothing of a length."""
LABEL = "headroom.endpoint"
"""Scope key under which the application leaves the endpoint's label for metrics."""


class AsgiBridge:
    """Runs the application once per request, as a task that is cancelled when the client leaves."""

    def __init__(self, app: AsgiApp, on_finished: OnFinished) -> None:
        self._app = app
        self._on_finished = on_finished
        self._tasks: dict[HttpConnection, asyncio.Task[None]] = {}

    def handle(self, request: HttpRequest) -> None:
        """Starts the request's task."""
        exchange, scope = _Exchange(request), _scope(request)
        task = asyncio.get_running_loop().create_task(self._run(request, exchange, scope))
        self._tasks[request.connection] = task
        # Not in the task itself: one that is cancelled before its first step never runs its own clean-up.
        task.add_done_callback(lambda ended: self._end(ended, request, exchange, scope.get(LABEL, "unknown")))

    def cancel(self, connection: HttpConnection) -> None:
        """The client left."""
        task = self._tasks.pop(connection, None)
        if task is not None:
            task.cancel()

    async def _run(self, request: HttpRequest, exchange: _Exchange, scope: Scope) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            assert request.context is not None
            log.exception("route failed", extra={"request_id": request.context.request_id})
            exchange.fail()

    def _end(self, task: asyncio.Task[None], request: HttpRequest, exchange: _Exchange, label: str) -> None:
        if self._tasks.get(request.connection) is task:
            del self._tasks[request.connection]
        if task.cancelled():
            exchange.status, exchange.kind = 499, "cancelled"
        exchange.finish()
        self._on_finished(request, label, exchange.status, exchange.bytes_out, exchange.kind)


class _Exchange:
    """The application's view of one request and the state of its answer."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._has_received = False
        self._head: list[str] | None = None
        self._is_chunked = False
        self._has_body = True
        self._is_head_sent = False
        self._is_done = False
        self.status = 500
        self.kind: str | None = None
        self.bytes_out = 0

    async def receive(self) -> Message:
        if not self._has_received:
            self._has_received = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await asyncio.Event().wait()  # the task is cancelled when the client leaves
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(message)
            return
        is_last = not message.get("more_body", False)
        self._write(message.get("body", b""), is_last)
        writable = self._request.connection.writable
        if not is_last and writable is not None:
            await writable.wait()

    def _start(self, message: Message) -> None:
        self.status = message["status"]
        request = self._request
        lines = [status_line(self.status)]
        names = set()
        for name, value in message.get("headers", ()):
            names.add(name.lower())
            lines.append(f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n")
        self._has_body = self.status not in _WITHOUT_BODY
        self._is_chunked = self._has_body and b"content-length" not in names
        if self._is_chunked:
            lines.append("transfer-encoding: chunked\r\n")
        assert request.context is not None
        lines.append(f"x-request-id: {request.context.request_id}\r\n")
        if request.context.traceparent is not None:
            lines.append(f"traceparent: {request.context.traceparent}\r\n")
        self._head = lines

    def _write(self, body: bytes, is_last: bool) -> None:
        request = self._request
        data = body if self._has_body and request.head.method != b"HEAD" else b""
        if self._is_chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if is_last else b"")
        keep_alive = not request.connection.must_close
        if not self._is_head_sent:
            assert self._head is not None
            end = "\r\n" if keep_alive else "connection: close\r\n\r\n"
            data = ("".join(self._head) + end).encode("latin-1") + data
            self._is_head_sent = True
        self.bytes_out += len(data)
        if is_last:
            self._is_done = True
            request.connection.finish(request, data, keep_alive=keep_alive)
        elif data:
            request.connection.transport.write(data)

    def fail(self) -> None:
        """The application raised: an error as the answer, or, where a part has left, the end of the connection."""
        self.kind = "internal"
        if self._is_done or self._is_head_sent:
            return
        assert self._request.context is not None
        body = orjson.dumps(error_body(Internal(), self._request.context.request_id))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        self._start({"status": 500, "headers": headers})
        self._write(body, is_last=True)

    def finish(self) -> None:
        """Closes the connection of an answer that was begun and not ended."""
        if not self._is_done and not self._request.connection.is_closing:
            self._request.connection.finish(self._request, b"", keep_alive=False)


def _scope(request: HttpRequest) -> Scope:
    head = request.head
    path, _, query = head.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": head.method.decode("latin-1"),
        "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": head.raw_headers,
        "client": None,
        "server": None,
        "state": {"context": request.context},
    }
