"""Writes the fuzzer's seeds: calls as clients make them, and what hostile ones send."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "seeds"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*headers: tuple[str, str]) -> bytes:
    """Literals without indexing."""
    return b"".join(b"\0" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in headers)


def call(path: str, *more: tuple[str, str]) -> bytes:
    """A request's headers."""
    return block((":method", "POST"), (":scheme", "http"), (":path", path), ("content-type", "application/grpc"), *more)


def message(body: bytes, *, is_packed: bool = False) -> bytes:
    """With its prefix."""
    return bytes([is_packed]) + struct.pack(">I", len(body)) + body


def main() -> None:
    """Overwrites the seeds."""
    start = PREFACE + frame(SETTINGS, 0, 0)
    infer = b"\x0a\x01m\x12\x00" + bytes(20)
    packed = gzip.compress(bytes(1000))
    sessions = {
        "unary": start + frame(HEADERS, 4, 1, call("/a/U")) + frame(DATA, 1, 1, message(infer)) + b"\xfe",
        "timeout": start + frame(HEADERS, 4, 1, call("/a/U", ("grpc-timeout", "5m"))) + frame(DATA, 1, 1, message(infer))
        + b"\xff\x10",
        "packed": start + frame(HEADERS, 4, 1, call("/a/U", ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip")))
        + frame(DATA, 1, 1, message(packed, is_packed=True)) + b"\xfe",
        "stream": start + frame(HEADERS, 4, 1, call("/a/S", ("k-bin", "AAE")))
        + b"".join(frame(DATA, 0, 1, message(bytes(n))) for n in (0, 9, 300)) + b"\xfe" + frame(DATA, 1, 1) + b"\xfe",
        "reset": start + frame(HEADERS, 4, 1, call("/a/U")) + frame(RST_STREAM, 0, 1, bytes(4))
        + frame(PING, 0, 0, bytes(8)),
        "windows": start + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)) + frame(HEADERS, 5, 1, call("/a/U"))
        + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 100)) + frame(PRIORITY, 0, 1, bytes(5)),
        "continued": start + frame(HEADERS, 0, 1, call("/a/U")[:20]) + frame(CONTINUATION, 4, 1, call("/a/U")[20:]),
        "wrong": start + frame(HEADERS, 4, 1, call("/none")) + frame(HEADERS, 4, 3, call("/a/U", ("grpc-timeout", "x")))
        + frame(DATA, 1, 3, b"\x07" * 9) + frame(GOAWAY, 0, 0, bytes(8)),
    }  # fmt: skip
    texts = {
        "timeout": b"99999999H", "ms": b"1500.25", "base64": b"AAECAw==", "gzip": gzip.compress(b"x" * 100),
        "accept": b"identity, deflate,gzip", "messages": message(b"abc") + message(b"") + message(b"1")[:3],
    }  # fmt: skip
    for folder, seeds in (("session", {name: b"\xff" + one for name, one in sessions.items()}), ("wire", texts)):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            (FOLDER / folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
