"""HTTP/2 frames by hand (RFC 9113), for clients that no library would be."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Self

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*headers: tuple[str, str]) -> bytes:
    """Literals without indexing, names and values up to 126 bytes, or longer values with a prefixed length."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, digits = len(raw) - 127, bytearray([127])
    while rest > 127:
        digits.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*digits, rest]) + raw


def call_headers(path: str, *more: tuple[str, str]) -> bytes:
    return block(
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"),
        ("content-type", "application/grpc"), ("te", "trailers"), *more,
    )  # fmt: skip


def message(body: bytes = b"") -> bytes:
    return b"\0" + struct.pack(">I", len(body)) + body


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


class Peer:
    """One end of a connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()

    def frames(self, until: Sequence[int]) -> list[tuple[int, int, int, bytes]]:
        """Those up to and with the first of a kind in `until`, or to the end of the connection."""
        found = []
        while True:
            while len(self._rest) >= 9 and len(self._rest) >= 9 + (size := int.from_bytes(self._rest[:3], "big")):
                kind, flags, stream = self._rest[3], self._rest[4], int.from_bytes(self._rest[5:9], "big")
                found.append((kind, flags, stream, self._rest[9 : 9 + size]))
                self._rest = self._rest[9 + size :]
                if kind in until:
                    return found
            try:
                chunk = self._socket.recv(65536)
            except ConnectionResetError:
                return found
            if not chunk:
                return found
            self._rest += chunk

    def send_until_closed(self, chunk: bytes, times: int) -> bool:
        """Whether the peer stopped taking it: reset or closed before all of it was sent."""
        try:
            for _ in range(times):
                self.sendall(chunk)
        except (ConnectionError, TimeoutError):
            return True
        return False


def connect(port: int, *first: bytes) -> Peer:
    """Speaks HTTP/2's first words."""
    peer = Peer(port)
    peer.sendall(PREFACE + b"".join(first or (settings(),)))
    return peer
