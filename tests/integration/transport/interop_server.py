"""gRPC's interop service on the bare transport, messages in JSON: what every client's conformance tests talk to.

A message may ask for `size` (bytes of answer), `status` ([code, message]), `sizes` (a stream of answers), `sleep` (never
answer). Metadata `x-grpc-test-echo-initial` and `x-grpc-test-echo-trailing-bin` comes back where its name says.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any, Self

from kernels.transport import EventKind

SERVICE = "grpc.testing.TestService"
UNARY = {name: f"/{SERVICE}/{name}" for name in ("EmptyCall", "UnaryCall", "UnimplementedCall")}
STREAMS = {name: f"/{SERVICE}/{name}" for name in ("StreamingOutputCall", "StreamingInputCall", "FullDuplexCall")}
_CREDIT = 4
SUM_ROUTE = 3


class InteropServer:
    """`with InteropServer() as server:` serves on `server.port`; `ended` has the codes of calls that ended by themselves."""

    def __init__(self, *, tls: tuple[Path, Path, Path | None] | None = None, threads: int = 1, **limits: int) -> None:
        from kernels.transport import Transport

        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        budget_ns = 30_000_000_000
        full = (("grpc-retry-pushback-ms", "10"),)
        methods = {path: (True, False, 1, 0) for name, path in UNARY.items() if name != "UnimplementedCall"}
        methods |= {
            STREAMS[name]: (False, False, route, _CREDIT)
            for name, route in (("StreamingOutputCall", 2), ("StreamingInputCall", SUM_ROUTE), ("FullDuplexCall", 2))
        }
        files = None if tls is None else (str(tls[0]), str(tls[1]), str(tls[2] or ""))
        self.transport: Any = Transport(
            listener=self._listening.fileno(), num_threads=threads, limits=limits, tls=files,
        )  # fmt: skip
        self.transport.serve([(0, budget_ns, "the queue is full", full)] * 4, methods, [])
        self.ended: deque[int] = deque()
        self.seen: deque[Any] = deque(maxlen=1000)
        self.is_paused = threading.Event()
        """Streams' messages are taken, and never asked for more."""
        self.answers_are_empty = False
        self.num_messages = 0
        self._sums: dict[int, int] = {}
        self._to_send: dict[int, tuple[Any, deque[int]]] = {}
        self._piled_up: set[int] = set()
        self._half_closed: set[int] = set()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.transport.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping = True
        self.transport.wake()
        self._thread.join()
        self.transport.stop()
        self._listening.close()

    def stop_taking(self) -> None:
        """As a server whose Python is busy."""
        self._is_stopping = True
        self.transport.wake()
        self._thread.join()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while not self._is_stopping:
            requests, events = self.transport.take(0.2)
            for call, payload, *_ in requests:
                self._answer(call, payload)
            for call, kind, payload, code in events:
                self._on_event(call, kind, payload, code)

    def _answer(self, call: Any, payload: bytes) -> None:
        self.seen.append(call)
        asked = json.loads(payload) if payload[:1] == b"{" else {}
        if asked.get("sleep"):
            return
        self._echo_initial(call)
        code, message = asked.get("status", (0, ""))
        body = (
            None if code else b"\0" * asked["size"] if "size" in asked else b"" if self.answers_are_empty else payload
        )
        details = (("grpc-status-details-bin", bytes(asked["details"])),) if "details" in asked else ()
        self.transport.reply([(call, code, body, message, self._trailing(call) + details)])

    def _on_event(self, call: Any, kind: int, payload: bytes, code: int) -> None:
        if kind == EventKind.ENDED:
            self.ended.append(code)
            self._to_send.pop(call.id, None)
        elif kind == EventKind.OPENED:
            self._sums[call.id] = 0
            self._echo_initial(call)
        elif kind == EventKind.MESSAGE:
            self.num_messages += 1
            if self.is_paused.is_set():  # takes no more of it
                return
            self.transport.grant(call, 1)
            self._on_message(call, payload)
        elif kind == EventKind.HALF_CLOSED:
            self._half_closed.add(call.id)
            self._send(call)
        elif kind == EventKind.WRITABLE:
            self._piled_up.discard(call.id)
            self._send(call)

    def _on_message(self, call: Any, payload: bytes) -> None:
        asked = json.loads(payload) if payload[:1] == b"{" else {}
        self._sums[call.id] += len(payload)
        if "status" in asked:
            code, message = asked["status"]
            self._to_send.pop(call.id, None)
            self.transport.reply([(call, code, None, message, self._trailing(call))])
            return
        self._to_send.setdefault(call.id, (call, deque()))[1].extend(asked.get("sizes", ()))
        self._send(call)

    def _send(self, call: Any) -> None:
        _, sizes = self._to_send.get(call.id, (call, deque()))
        while sizes and call.id not in self._piled_up:
            if self.transport.send(call, b"\0" * sizes.popleft()):
                self._piled_up.add(call.id)
        if not sizes and call.id in self._half_closed:
            is_sum = call.route == SUM_ROUTE
            total = json.dumps({"total": self._sums[call.id]}).encode() if is_sum else None
            self.transport.reply([(call, 0, total, "", self._trailing(call))])
            self._to_send.pop(call.id, None)

    def _echo_initial(self, call: Any) -> None:
        initial = tuple(pair for pair in call.metadata if pair[0] == "x-grpc-test-echo-initial")
        if initial:
            self.transport.send(call, None, initial)

    def _trailing(self, call: Any) -> tuple[tuple[str, Any], ...]:
        return tuple(pair for pair in call.metadata if pair[0] == "x-grpc-test-echo-trailing-bin")
