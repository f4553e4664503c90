"""HTTP/1.1 as bytes on a socket: what no well-behaved client library would send, and exactly what comes back."""

from __future__ import annotations

import json
import re
import select
import socket
from dataclasses import dataclass
from typing import Any, Self

WAIT_S = 20.0


@dataclass(frozen=True)
class RawAnswer:
    """One answer as it stood on the wire; `body` is without its framing."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection. `answer` gives None when the server closed it instead."""

    def __init__(self, port: int, *, receive_buffer_bytes: int | None = None) -> None:
        self.port = port
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def request(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Self:
        """A well-formed request; `headers` with `_` for `-`."""
        return self.send(request_bytes(self.port, method, target, body, **headers))

    def answer(self, *, to_head: bool = False) -> RawAnswer | None:
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]+", status_line)
        assert found is not None, f"not a status line: {status_line[:200]!r}"
        length = 0 if to_head or found[1] in ("100", "204") else int(headers["content-length"])
        return RawAnswer(int(found[1]), headers, self._exactly(length))

    def answers(self) -> list[RawAnswer]:
        """Every answer until the server closes the connection."""
        found = []
        while (answer := self.answer()) is not None:
            found.append(answer)
        return found

    def has_something_to_read(self, within_s: float) -> bool:
        """Whether an answer, or the end, has come."""
        return bool(self._received) or bool(select.select([self.socket], [], [], within_s)[0])

    def is_closed(self) -> bool:
        """Waits for the end of the connection; False when anything else comes."""
        return not self._received and not self._more()

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._received:
            if not self._more():
                assert not self._received, f"the connection ended inside an answer: {self._received[:200]!r}"
                return None
        head, _, self._received = self._received.partition(end)
        return head

    def _exactly(self, length: int) -> bytes:
        while len(self._received) < length:
            assert self._more(), f"the body ended after {len(self._received)} of {length} bytes"
        body, self._received = self._received[:length], self._received[length:]
        return body

    def _more(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            return False
        self._received += data
        return bool(data)


def request_bytes(port: int, method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
    """A request as a client would write it; a `Host` is added unless one is given."""
    lines = {"Host": f"127.0.0.1:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body is not None:
        lines.setdefault("Content-Length", str(len(body)))
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + (body or b"")
