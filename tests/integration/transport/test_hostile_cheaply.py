"""Clients to whom it costs little to cost much: what is counted, and what a connection is ended for."""

from __future__ import annotations

import gzip
import socket
import struct
from collections.abc import Iterator

import grpc
import psutil
import pytest

from tests.integration.transport.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Peer,
    call_headers,
    connect,
    frame,
    message,
)
from tests.integration.transport.interop_server import STREAMS, UNARY, InteropServer
from tests.redis_server import until

MB = 1 << 20
WAIT_S = 20


@pytest.fixture
def server() -> Iterator[InteropServer]:
    with InteropServer() as one:
        yield one


def grown(before: int) -> int:
    return psutil.Process().memory_info().rss - before


def with_windows(port: int) -> Peer:
    """A connection whose streams have the windows that the server says, from their first byte on."""
    peer = connect(port)
    peer.frames([SETTINGS])
    peer.sendall(frame(SETTINGS, ACK, 0))
    return peer


def ended(peer: Peer) -> dict[int, bytes]:
    """The header block that ends each stream, as far as the connection goes."""
    return {
        stream: content for kind, flags, stream, content in peer.frames([]) if kind == HEADERS and flags & END_STREAM
    }


def test_values_of_one_binary_header_count_as_headers_of_their_own(server: InteropServer) -> None:
    """A comma parts them, and each has the name: 8 KB of name and 8 000 commas would take 60 MB."""
    many = call_headers(UNARY["UnaryCall"], ("x" * 7_000 + "-bin", "," * 7_000))
    with connect(server.port) as connection:
        before = psutil.Process().memory_info().rss
        for stream in range(1, 15, 2):
            connection.sendall(frame(HEADERS, END_HEADERS, stream, many))
        for _ in range(7):
            assert connection.frames([HEADERS])[-1][0] == HEADERS
        assert grown(before) < 32 * MB
    assert not server.seen


def test_streams_that_end_at_once_leave_nothing_for_a_slow_server() -> None:
    """Opened and ended by a malformed message in one write: neither is of use to Python."""
    with InteropServer() as server:
        server.stop_taking()
        with connect(server.port) as connection:
            before = psutil.Process().memory_info().rss
            headers = call_headers(STREAMS["FullDuplexCall"], ("x-large", "v" * 8_000))
            for start in range(1, 8_001, 200):
                streams = range(start, start + 200, 2)
                if connection.send_until_closed(
                    b"".join(
                        frame(HEADERS, END_HEADERS, s, headers) + frame(DATA, 0, s, b"\x02" + bytes(4)) for s in streams
                    ),
                    1,
                ):
                    break
            until(lambda: server.transport.statistics()["calls"] == 0, "all have ended")
            assert grown(before) < 48 * MB


def test_beginnings_of_streams_that_nobody_takes_are_bounded() -> None:
    with InteropServer(max_calls=16) as server:
        server.stop_taking()
        with connect(server.port) as connection:
            for stream in range(1, 65, 2):
                connection.sendall(frame(HEADERS, END_HEADERS, stream, call_headers(STREAMS["FullDuplexCall"])))
                connection.sendall(frame(PING, 0, 0, bytes(8)))
                answered = connection.frames([PING])  # it was opened in a turn of its own
                if all(kind != HEADERS for kind, *_ in answered):
                    connection.sendall(frame(DATA, 0, stream, b"\x02" + bytes(4)))
                    connection.frames([HEADERS])
            tallies = dict(server.transport.tallies())
        assert tallies[2][0] == 32 - 16  # queue_full


def test_empty_messages_are_not_free(server: InteropServer) -> None:
    server.is_paused.set()
    with with_windows(server.port) as connection:
        connection.sendall(frame(HEADERS, END_HEADERS, 1, call_headers(STREAMS["FullDuplexCall"])))
        for _ in range(8):
            connection.sendall(frame(DATA, 0, 1, message() * 1_000))
        until(lambda: server.transport.statistics()["buffered_bytes"] > 100 * 7_900, "they are counted")
    until(lambda: server.transport.statistics()["buffered_bytes"] == 0, "and given back")


def test_packed_messages_are_unpacked_when_python_takes_them(server: InteropServer) -> None:
    """Eight kilobytes are eight megabytes: without credit they stay what they are, and others are served meanwhile."""
    server.is_paused.set()
    bomb = gzip.compress(bytes(8 * MB))
    packed = b"\x01" + struct.pack(">I", len(bomb)) + bomb
    with with_windows(server.port) as connection, grpc.insecure_channel(server.target) as channel:
        headers = call_headers(STREAMS["FullDuplexCall"], ("grpc-encoding", "gzip"))
        connection.sendall(frame(HEADERS, END_HEADERS, 1, headers))
        everything = packed * 60
        for at in range(0, len(everything), 16_000):
            connection.sendall(frame(DATA, 0, 1, everything[at : at + 16_000]))
        until(lambda: server.num_messages == 4, "there is credit for four")
        assert channel.unary_unary(UNARY["UnaryCall"])(b"", timeout=WAIT_S) == b""
        assert server.transport.statistics()["buffered_bytes"] < 4 * MB
    until(lambda: server.transport.statistics()["buffered_bytes"] == 0, "nothing stays")


def test_packed_unary_messages_have_their_turns(server: InteropServer) -> None:
    """Many at once: each is unpacked and answered, though not in one turn."""
    bomb = gzip.compress(bytes(4 * MB))
    packed = b"\x01" + struct.pack(">I", len(bomb)) + bomb
    headers = call_headers(UNARY["UnaryCall"], ("grpc-encoding", "gzip"))
    server.answers_are_empty = True
    with with_windows(server.port) as connection:
        connection.sendall(
            b"".join(
                frame(HEADERS, END_HEADERS, s, headers) + frame(DATA, END_STREAM, s, packed) for s in range(1, 41, 2)
            )
        )
        streams = set()
        while len(streams) < 20:
            kind, flags, stream, _ = connection.frames([HEADERS])[-1]
            assert kind == HEADERS
            if flags & END_STREAM:
                streams.add(stream)
    assert len(server.seen) == 20


@pytest.mark.parametrize("share", [0.4, 0.6, 0.95])
def test_one_message_may_take_nearly_all_the_memory_allowed(share: float) -> None:
    with InteropServer(max_buffered_bytes=4 * MB) as server, grpc.insecure_channel(server.target) as channel:
        size = int(4 * MB * share)
        server.answers_are_empty = True
        assert channel.unary_unary(UNARY["UnaryCall"])(bytes(size), timeout=WAIT_S) == b""


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_a_client_that_leaves_in_the_middle_of_a_message_has_left(server: InteropServer, how: str) -> None:
    """Data and the end of the connection arrive together: the end must not be overlooked."""
    for _ in range(10):
        connection = connect(server.port)
        connection.frames([SETTINGS])
        call = frame(HEADERS, END_HEADERS, 1, call_headers(UNARY["UnaryCall"])) + frame(
            DATA, 0, 1, message(bytes(100))[:50]
        )
        raw = connection._socket
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.sendall(call)
        raw.shutdown(socket.SHUT_WR)
        if how == "close":
            connection.close()
    until(lambda: server.transport.statistics()["connections"] == 0, "all have gone")
    assert server.transport.statistics()["calls"] == 0


def test_a_client_that_measures_its_bandwidth_is_not_sent_away(server: InteropServer) -> None:
    """Some ping for whatever they receive (grpc-go's estimator): as often as there are answers, without a new call."""
    with connect(server.port) as connection:
        connection.sendall(frame(HEADERS, END_HEADERS, 1, call_headers(STREAMS["FullDuplexCall"])))
        for number in range(600):
            connection.sendall(frame(DATA, 0, 1, message(b'{"sizes": [1]}')))
            connection.sendall(frame(8, 0, 0, struct.pack(">I", 100)) * (number % 2))
            kinds = [kind for kind, *_ in connection.frames([DATA, GOAWAY])]
            assert GOAWAY not in kinds
            connection.sendall(frame(PING, 0, 0, bytes(8)))


def test_deadlines_that_pass_by_the_thousand_end_no_connection(server: InteropServer) -> None:
    """A client under overload resets what came too late: more of it than nghttp2 would allow by itself, and no attack."""
    sleep = frame(DATA, END_STREAM, 1, message(b'{"sleep": true}'))[9:]
    with connect(server.port) as connection:
        for start in range(1, 3_001, 300):
            connection.sendall(
                b"".join(
                    frame(HEADERS, END_HEADERS, s, call_headers(UNARY["UnaryCall"])) + frame(DATA, END_STREAM, s, sleep)
                    for s in range(start, start + 300, 2)
                )
            )
            connection.sendall(
                b"".join(frame(RST_STREAM, 0, s, struct.pack(">I", 8)) for s in range(start, start + 300, 2))
            )
        connection.sendall(
            frame(HEADERS, END_HEADERS, 3_001, call_headers(UNARY["UnaryCall"]))
            + frame(DATA, END_STREAM, 3_001, message())
        )
        assert connection.frames([HEADERS, GOAWAY])[-1][0] == HEADERS


def test_streams_that_we_are_made_to_reset_count_as_resets(server: InteropServer) -> None:
    """CVE-2025-8671: a window update of 2^31 - 1 breaks the rules of its stream alone, and the server has to end it."""
    with connect(server.port) as connection:
        for start in range(1, 12_001, 400):
            chunk = b"".join(
                frame(HEADERS, END_HEADERS, s, call_headers(UNARY["UnaryCall"]))
                + frame(8, 0, s, struct.pack(">I", (1 << 31) - 1))
                for s in range(start, start + 400, 2)
            )
            if connection.send_until_closed(chunk, 1):
                break
        last = [payload for kind, _, _, payload in connection.frames([GOAWAY]) if kind == GOAWAY]
        assert not last or struct.unpack(">II", last[0][:8])[1] == ENHANCE_YOUR_CALM
    until(lambda: server.transport.statistics()["connections"] == 0, "it is closed")


def test_a_long_status_message_is_cut_and_arrives(server: InteropServer) -> None:
    """Larger than a header block may be, a stream would be left without an end."""
    asked = b'{"status": [5, "%s"]}' % ("☺" * 30_000).encode()
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(UNARY["UnaryCall"])(asked, timeout=WAIT_S)
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND
    assert set(failed.value.details()) == {"☺"}


def test_trailers_too_large_to_be_sent_end_their_stream(server: InteropServer) -> None:
    asked = b'{"size": 1, "details": %s}' % str([7] * 100_000).encode()
    with (
        grpc.insecure_channel(server.target, options=[("grpc.max_metadata_size", 1 << 20)]) as channel,
        pytest.raises(grpc.RpcError) as failed,
    ):
        channel.unary_unary(UNARY["UnaryCall"])(asked, timeout=WAIT_S)
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    until(lambda: server.transport.statistics()["calls"] == 0, "the call is over")
