"""What the load generator's tests share: how it is built and run, and an HTTP/1.1 server whose behaviour is known."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import json
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "benchmarks" / "load"
GENERATOR = ROOT / ".build" / "headroom-load"
MARKER = "ID__________"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\ncontent-length: 0\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"5;x=y\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\n"
TO_THE_END = b"HTTP/1.0 200 OK\r\n\r\n{}"


@functools.cache
def generator() -> str:
    """The path of the program, brought up to date; skips the test where it is absent and cannot be built."""
    missing = [tool for tool in ("make", "g++") if shutil.which(tool) is None]
    if missing and not GENERATOR.exists():
        pytest.skip(f"the load generator cannot be built: no {' and no '.join(missing)}")
    if not missing:
        built = subprocess.run(["make", "-C", str(SOURCES), "-j2"], capture_output=True, text=True, check=False)
        if "libnghttp2-dev" in built.stderr:
            pytest.skip(built.stderr.splitlines()[0])
        assert built.returncode == 0, built.stderr
    return str(GENERATOR)


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run: the JSON result and the rows of the CSV."""

    result: dict[str, Any]
    rows: list[dict[str, str]]

    def latencies_ms(self) -> list[float]:
        answered = [row for row in self.rows if row["outcome"] == "answered"]
        return [(float(row["finished_us"]) - float(row["scheduled_us"])) / 1000 for row in answered]


def generate(folder: Path, port: int, *flags: str, path: str = "/score", bodies: tuple[bytes, ...] = (b"{}",)) -> Run:
    (folder / "bodies").write_bytes(b"".join(struct.pack("<I", len(body)) + body for body in bodies))
    command = [generator(), "--url", f"http://127.0.0.1:{port}{path}", "--bodies", str(folder / "bodies")]
    outputs = ["--json", str(folder / "result.json"), "--csv", str(folder / "rows.csv")]
    subprocess.run([*command, "--warmup-s", "0", *flags, *outputs], check=True, capture_output=True, timeout=60)
    result = json.loads((folder / "result.json").read_text())
    parts = result["completed"] + sum(result["failed"].values()) + result["not_sent"]
    assert result["offered"] == parts, "every request ends in exactly one way"
    assert sum(result["by_status"].values()) == result["completed"]
    with (folder / "rows.csv").open() as file:
        return Run(result, list(csv.DictReader(file)))


def refuse(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([generator(), *flags], check=False, capture_output=True, text=True, timeout=60)


class HttpPeer(asyncio.Protocol):
    """Writes what `answer(index, body)` gives, in pieces if it is a list; resets the connection for None."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.num_connections += 1

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        if not separator or len(rest) < int(lengths[0]):
            return
        self.received = b""
        self.server.bodies.append(rest)
        self.write(self.server.answer(len(self.server.bodies) - 1, rest))

    def write(self, answer: bytes | list[bytes] | None) -> None:
        if answer is None:
            return self.transport.abort()
        pieces = answer if isinstance(answer, list) else [answer]
        self.transport.writelines(pieces[:1])
        for piece in pieces[1:]:
            asyncio.get_running_loop().call_soon(self.transport.write, piece)
        if pieces[0] in (CLOSING, TO_THE_END, self.server.closes_after):
            self.transport.close()
        return None


class HttpServer:
    """What an HTTP/1.1 server does and has seen; `closes_after` is an answer after which it silently closes."""

    def __init__(
        self, answer: Callable[[int, bytes], bytes | list[bytes] | None], closes_after: bytes | None = None
    ) -> None:
        self.answer = answer
        self.closes_after = closes_after
        self.bodies: list[bytes] = []
        self.num_connections = 0


@contextlib.contextmanager
def listening(make_peer: Callable[[], asyncio.Protocol]) -> Iterator[int]:
    """Runs an asyncio server on a thread; gives its port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(make_peer, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@contextlib.contextmanager
def http_server(
    answer: Callable[[int, bytes], Any], closes_after: bytes | None = None
) -> Iterator[tuple[HttpServer, int]]:
    server = HttpServer(answer, closes_after)
    with listening(lambda: HttpPeer(server)) as port:
        yield server, port
