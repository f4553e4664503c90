"""When a request counts as arrived: not when it was read, where it had waited for that."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serve.ingress.admission import Admission
from serve.ingress.http import HttpListener
from serve.ingress.http_connection import HttpConnection
from serve.settings import Limits

MS = 1_000_000
LONG_AGO_NS = 10**9


class Turns:
    """A listener whose loop turns when told to, on a clock that stands still in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10 * LONG_AGO_NS
        monkeypatch.setattr("serve.ingress.http.time", SimpleNamespace(monotonic_ns=lambda: self.now_ns))
        ledger: Any = None
        self.listener = HttpListener("http", [], {}, None, Limits(), Admission("127.0.0.1"), ledger)  # type: ignore[arg-type]
        self._soon: list[Any] = []
        self.listener._loop = SimpleNamespace(call_soon=self._soon.append)  # type: ignore[assignment]
        self.num_asked = 0

    def end(self, took_ns: int) -> None:
        for callback in self._soon:
            callback()
        self._soon.clear()
        self.now_ns += took_ns

    def waited_ms(self, unseen_ms: int) -> float:
        """How long before now a request counts as arrived whose connection says `unseen_ms`."""

        def ask() -> int:
            self.num_asked += 1
            return unseen_ms

        connection: Any = SimpleNamespace(unseen_ms=ask)
        return (self.now_ns - self.listener.arrived_ns(connection)) / MS


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return Turns(monkeypatch)


def test_what_a_sleeping_loop_reads_has_just_arrived_and_nobody_is_asked(turns: Turns) -> None:
    assert turns.waited_ms(30) == 0
    turns.end(took_ns=LONG_AGO_NS)
    assert turns.waited_ms(30) == 0
    assert turns.num_asked == 0


def test_requests_of_one_turn_have_arrived_when_it_began_however_long_it_takes(turns: Turns) -> None:
    assert turns.waited_ms(0) == 0
    turns.now_ns += 7 * MS
    assert turns.waited_ms(0) == 7


def test_behind_a_busy_loop_the_time_in_the_socket_counts(turns: Turns) -> None:
    turns.waited_ms(0)
    turns.end(took_ns=40 * MS)
    assert turns.waited_ms(24) == 24


def test_one_of_eight_is_asked_and_nobody_counts_as_older_than_those_before(turns: Turns) -> None:
    turns.waited_ms(0)
    turns.end(took_ns=40 * MS)
    assert [turns.waited_ms(ms) for ms in (24, *[99] * 7, 12, *[99] * 7, 99)] == [24] * 8 + [12] * 9
    assert turns.num_asked == 3


def test_a_loop_that_keeps_up_asks_once_a_turn(turns: Turns) -> None:
    turns.waited_ms(0)
    for _ in range(3):
        turns.end(took_ns=MS)
        assert [turns.waited_ms(0) for _ in range(20)] == [0] * 20
    assert turns.num_asked == 3


def test_the_kernel_knows_how_long_bytes_have_lain_in_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        endpoint: Any = SimpleNamespace(limits=Limits())
        connection = HttpConnection(endpoint)
        connection._socket = accepted
        client.sendall(b"x")
        began_ns = time.monotonic_ns()
        assert connection.unseen_ms() <= 4
        while time.monotonic_ns() - began_ns < 60 * MS:
            pass
        lain_ms = (time.monotonic_ns() - began_ns) / MS
        assert 40 <= connection.unseen_ms() <= lain_ms + 100
        accepted.close()
