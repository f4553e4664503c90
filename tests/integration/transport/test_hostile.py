"""Clients that mean harm: bounded memory, and other clients unharmed."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import psutil
import pytest

from tests.integration.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    Peer,
    block,
    call_headers,
    connect,
    frame,
    message,
    settings,
)
from tests.integration.transport.interop_server import STREAMS, UNARY, InteropServer
from tests.redis_server import until

WAIT_S = 20
MB = 1 << 20
SECOND_NS = 1_000_000_000


@pytest.fixture
def unharmed(server: InteropServer) -> Iterator[None]:
    """Another client, before and after; and the memory that the attack has cost."""
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(UNARY["UnaryCall"])
        assert call(b"", timeout=WAIT_S) == b""
        before = psutil.Process().memory_info().rss
        yield
        assert call(b"", timeout=WAIT_S) == b""
        assert psutil.Process().memory_info().rss - before < 64 * MB
    until(lambda: server.transport.statistics()["buffered_bytes"] == 0, "nothing stays buffered")


def goaway_code(connection: Peer) -> int | None:
    last = [payload for kind, _, _, payload in connection.frames([GOAWAY]) if kind == GOAWAY]
    return struct.unpack(">II", last[0][:8])[1] if last else None


@pytest.mark.usefixtures("unharmed")
def test_rapid_reset(server: InteropServer) -> None:
    """CVE-2023-44487: streams that are opened and reset at once, complete requests among them."""
    with connect(server.port) as connection:
        is_closed = False
        for start in range(1, 40_000, 2000):
            chunk = b"".join(
                frame(HEADERS, END_HEADERS, stream, call_headers(UNARY["UnaryCall"]))
                + frame(DATA, END_STREAM, stream, message())
                + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
                for stream in range(start, start + 2000, 2)
            )
            is_closed = is_closed or connection.send_until_closed(chunk, 1)
        assert is_closed or goaway_code(connection) == ENHANCE_YOUR_CALM
    until(lambda: server.transport.statistics()["calls"] == 0, "no call stays open")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(frame(PING, 0, 0, bytes(8)), id="ping"),
        pytest.param(settings(), id="settings"),
        pytest.param(frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 1)), id="priority"),
    ],
)
@pytest.mark.usefixtures("unharmed")
def test_floods_of_frames_that_cost_nothing(server: InteropServer, attack: bytes) -> None:
    with connect(server.port) as connection:
        is_closed = connection.send_until_closed(attack * 1000, 20)
        assert is_closed or goaway_code(connection) == ENHANCE_YOUR_CALM


def test_who_pings_too_often_is_told_in_grpcs_words(server: InteropServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(frame(PING, 0, 0, bytes(8)) * 300)
        last = [payload for kind, _, _, payload in connection.frames([GOAWAY]) if kind == GOAWAY]
    assert last[0][8:] == b"too_many_pings"


@pytest.mark.usefixtures("unharmed")
def test_empty_data_flood(server: InteropServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(frame(HEADERS, END_HEADERS, 1, call_headers(UNARY["UnaryCall"])))
        is_closed = connection.send_until_closed(frame(DATA, 0, 1) * 1000, 20)
        assert is_closed or goaway_code(connection) == ENHANCE_YOUR_CALM


@pytest.mark.usefixtures("unharmed")
def test_continuation_flood(server: InteropServer) -> None:
    with connect(server.port) as connection:
        connection.sendall(frame(HEADERS, 0, 1, call_headers(UNARY["UnaryCall"])))
        chunk = frame(CONTINUATION, 0, 1, block(("x-k", "v" * 100)) * 100)
        assert connection.send_until_closed(chunk, 5000) or goaway_code(connection) is not None


@pytest.mark.usefixtures("unharmed")
def test_hpack_bomb(server: InteropServer) -> None:
    """One large entry in the table, named again and again: 16 KB on the wire, 60 MB of headers."""
    big = b"\x40" + block(("x-big", "v" * 3900))[1:]  # with incremental indexing: entry 62
    with connect(server.port) as connection:
        first = call_headers(UNARY["UnaryCall"]) + big
        connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 1, first + b"\xbe" * 12_000))
        frames = connection.frames([HEADERS, RST_STREAM, GOAWAY])
        assert frames[-1][0] in (HEADERS, RST_STREAM, GOAWAY)


@pytest.mark.usefixtures("unharmed")
def test_zero_window_stall() -> None:
    """Answers that nobody takes are given up after `write_timeout`; meanwhile they are bounded."""
    with InteropServer(write_timeout_ns=SECOND_NS // 2) as server:
        with connect(server.port, settings((4, 0))) as connection:
            for stream in range(1, 41, 2):
                asked = b'{"size": 1000000}'
                connection.sendall(
                    frame(HEADERS, END_HEADERS, stream, call_headers(UNARY["UnaryCall"]))
                    + frame(DATA, END_STREAM, stream, message(asked))
                )
            frames = []
            while sum(kind == RST_STREAM for kind, *_ in frames) < 20:
                more = connection.frames([RST_STREAM])
                assert more, "the connection was closed before its streams were"
                frames += more
        until(lambda: server.transport.statistics()["calls"] == 0, "nothing stays open")


def test_a_client_that_reads_nothing_is_closed() -> None:
    with InteropServer(write_timeout_ns=SECOND_NS // 2) as server:
        connection = connect(server.port, settings((4, (1 << 31) - 1)))
        connection.sendall(frame(8, 0, 0, struct.pack(">I", (1 << 31) - 1 - 65535)))
        for stream in range(1, 201, 2):
            connection.sendall(
                frame(HEADERS, END_HEADERS, stream, call_headers(UNARY["UnaryCall"]))
                + frame(DATA, END_STREAM, stream, message(b'{"size": 1000000}'))
            )
        until(lambda: server.transport.statistics()["connections"] == 0, "the server gives it up")
        connection.close()


@pytest.mark.usefixtures("unharmed")
def test_slow_loris() -> None:
    """A connection that does not speak HTTP/2 in time, and a call whose message never comes, are ended."""
    with InteropServer(handshake_timeout_ns=SECOND_NS // 2) as server:
        silent = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)
        silent.sendall(b"")
        slow = connect(server.port)
        timeout = ("grpc-timeout", "300m")
        slow.sendall(frame(HEADERS, END_HEADERS, 1, call_headers(UNARY["UnaryCall"], timeout)))
        slow.sendall(frame(DATA, 0, 1, message(bytes(100))[:7]))
        assert silent.recv(1000) is not None
        until(lambda: server.transport.statistics()["connections"] == 1, "the silent one is closed")
        kinds = [kind for kind, *_ in slow.frames([HEADERS])]
        assert kinds[-1] == HEADERS  # trailers alone: DEADLINE_EXCEEDED
        until(lambda: server.transport.statistics()["calls"] == 0, "the call has ended")
        silent.close()
        slow.close()


def test_messages_that_never_come_to_their_end_count_as_memory() -> None:
    """Each stream may send a message; all of them together hold no more than the memory allowed."""
    with InteropServer(max_buffered_bytes=4 * MB) as server, connect(server.port) as connection:
        part = message(bytes(MB))[: MB // 2]
        connection.frames([SETTINGS])
        connection.sendall(frame(SETTINGS, ACK, 0))  # from here on the streams' windows are what the server said
        for stream in range(1, 41, 2):
            opened = frame(HEADERS, END_HEADERS, stream, call_headers(UNARY["UnaryCall"]))
            pieces = b"".join(frame(DATA, 0, stream, part[at : at + 16384]) for at in range(0, len(part), 16384))
            connection.sendall(opened + pieces)
        refused = 0
        while refused < 12:  # of twenty; eight halves fill what is allowed
            assert connection.frames([HEADERS])[-1][0] == HEADERS
            refused += 1
        assert server.transport.statistics()["buffered_bytes"] <= 4 * MB
        connection.close()
        until(lambda: server.transport.statistics()["buffered_bytes"] == 0, "all of it is given back")


def test_many_idle_connections_cost_little_and_are_bounded() -> None:
    """As many as this process may have descriptors for, up to 8 000 at both ends; one more is turned away."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    num = min(8000, soft // 2 - 300)
    with InteropServer(max_connections=num) as server, ExitStack() as stack:
        before = psutil.Process().memory_info().rss
        clients = [stack.enter_context(connect(server.port)) for _ in range(num - 1)]
        until(lambda: server.transport.statistics()["connections"] == num - 1, "all are there")
        grown = psutil.Process().memory_info().rss - before
        assert grown / num < 64 << 10
        with grpc.insecure_channel(server.target) as channel:
            assert channel.unary_unary(UNARY["UnaryCall"])(b"", timeout=WAIT_S) == b""
            with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as one_more:
                assert one_more.recv(1) == b""
        assert server.transport.statistics()["refused_connections"] == 1
        for client in clients[: num // 2]:
            client.close()
        until(lambda: server.transport.statistics()["connections"] < num // 2 + 2, "those that left are gone")


def test_dead_peers_are_found_by_keepalive() -> None:
    with InteropServer(keepalive_ns=SECOND_NS // 4, keepalive_timeout_ns=SECOND_NS // 4) as server:
        with connect(server.port) as dead:
            until(lambda: server.transport.statistics()["connections"] == 0, "a peer that answers no ping is closed")
            assert any(kind == PING for kind, *_ in dead.frames([PING]))
        with connect(server.port) as alive:
            for _ in range(4):
                frames = alive.frames([PING])
                alive.sendall(frame(PING, ACK, 0, frames[-1][3]))
            assert server.transport.statistics()["connections"] == 1


def test_connections_have_an_age() -> None:
    with InteropServer(max_age_ns=SECOND_NS // 2, age_grace_ns=SECOND_NS) as server, connect(server.port) as connection:
        assert any(kind == GOAWAY for kind, *_ in connection.frames([GOAWAY]))
        until(lambda: server.transport.statistics()["connections"] == 0, "an idle one is closed then")
        with grpc.insecure_channel(server.target) as channel:  # and clients never notice
            call = channel.unary_unary(UNARY["UnaryCall"])
            end_s = time.monotonic() + 3
            while time.monotonic() < end_s:
                assert call(b"", timeout=WAIT_S, wait_for_ready=True) == b""


def test_a_full_queue_refuses_by_name_and_says_when_to_come_back(server: InteropServer) -> None:
    server.transport.set_bound(0, 8)
    server.transport.set_room(0, 0)  # nothing is taken
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(UNARY["UnaryCall"])
        waiting = [call.future(b"", timeout=WAIT_S) for _ in range(8)]
        until(lambda: server.transport.waiting(0) == 8, "the queue is full")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=WAIT_S)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "10"
        waiting[0].cancel()
        until(lambda: server.transport.waiting(0) == 7, "who leaves makes room")
        late = call.future(b"", timeout=0.1)
        assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert not server.seen  # neither of them was ever given to Python
        server.transport.set_room(0, 100)
        server.transport.wake()
        assert [one.result(WAIT_S) for one in waiting[1:]] == [b""] * 7
    (tally,) = [counts for route, counts in server.transport.tallies() if route == 1]
    queue_full, _, _, expired, cancelled, _ = tally
    assert queue_full == 1
    assert expired + cancelled == 2


def test_what_is_urgent_is_taken_first(server: InteropServer) -> None:
    server.transport.set_room(0, 0)
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(UNARY["UnaryCall"])
        patient = call.future(b'{"size": 1}', timeout=WAIT_S)
        until(lambda: server.transport.waiting(0) == 1, "it waits")
        urgent = call.future(b'{"size": 2}', timeout=WAIT_S / 2)
        until(lambda: server.transport.waiting(0) == 2, "so does this")
        server.transport.set_room(0, 100)
        server.transport.wake()
        assert (len(patient.result(WAIT_S)), len(urgent.result(WAIT_S))) == (1, 2)
    assert [one.deadline_ns for one in server.seen] == sorted(one.deadline_ns for one in server.seen)


def test_memory_is_bounded_over_all_connections() -> None:
    with InteropServer(max_buffered_bytes=4 * MB) as server:
        server.transport.set_room(0, 0)
        with grpc.insecure_channel(server.target) as channel:
            call = channel.unary_unary(UNARY["UnaryCall"])
            calls = [call.future(bytes(MB), timeout=2) for _ in range(8)]
            codes = [one.code() for one in calls]
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert server.transport.statistics()["buffered_bytes"] <= 4 * MB


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not HTTP/2"),
        (bytes(200), "zeros"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([255] * 100), "a frame of 16 MB"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings() + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50), "no HPACK"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings() + frame(DATA, 0, 1, b"x"), "data of no stream"),
    ],
)
def test_what_is_not_http2_is_closed(server: InteropServer, first: bytes, why: str) -> None:
    with Peer(server.port) as connection:
        connection.sendall(first)
        connection.frames([])  # to the end
    until(lambda: server.transport.statistics()["connections"] == 0, why)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x02" + bytes(4), b"\x01" + struct.pack(">I", 3) + b"abc", message()[:3], message() + message(), b"",
        b"\0\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_wrong_framing_fails_its_call_alone(server: InteropServer, payload: bytes) -> None:
    with connect(server.port) as connection:
        for stream in (1, 3):
            connection.sendall(
                frame(HEADERS, END_HEADERS, stream, call_headers(UNARY["UnaryCall"]))
                + frame(DATA, END_STREAM, stream, payload if stream == 1 else message(b'{"size": 3}'))
            )
        ended: dict[int, bytes] = {}
        data: dict[int, bytes] = {}
        while len(ended) < 2:
            kind, flags, stream, content = connection.frames([HEADERS, DATA])[-1]
            if kind == DATA:
                data[stream] = data.get(stream, b"") + content
            elif flags & END_STREAM:
                ended[stream] = content
    assert data == {3: message(bytes(3))}


def test_half_closed_and_reset_streams_leave_nothing(server: InteropServer) -> None:
    with connect(server.port) as connection:
        for stream in range(1, 101, 2):
            connection.sendall(frame(HEADERS, END_HEADERS, stream, call_headers(STREAMS["FullDuplexCall"])))
            connection.sendall(frame(DATA, 0, stream, message(b"x" * 100)))
        until(lambda: server.transport.statistics()["calls"] == 50, "fifty are open")
    until(lambda: server.transport.statistics()["calls"] == 0, "all end with their connection")
    until(lambda: len(server.ended) == 50, "and Python hears of each")
    assert set(server.ended) == {1}


def test_settings_are_acknowledged(server: InteropServer) -> None:
    with connect(server.port) as connection:
        frames = connection.frames([SETTINGS])
        assert frames[-1][0] == SETTINGS
