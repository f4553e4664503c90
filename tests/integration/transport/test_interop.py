"""The cases of gRPC's interop list (doc/interop-test-descriptions.md), with both of grpcio's clients."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.integration.transport.interop_server import STREAMS, UNARY, InteropServer
from tests.redis_server import until

LARGE_REQUEST, LARGE_RESPONSE = 271_828, 314_159
SIZES = [31_415, 9, 2_653, 58_979]
WAIT_S = 20
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


@pytest.fixture
def channel(server: InteropServer) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options=options) as one:
        yield one


def message(num_bytes: int = 0, /, **asked: Any) -> bytes:
    text = json.dumps(asked).encode()
    return text + b" " * (num_bytes - len(text))


def test_empty_unary(channel: grpc.Channel) -> None:
    assert channel.unary_unary(UNARY["EmptyCall"])(b"", timeout=WAIT_S) == b""


def test_large_unary(channel: grpc.Channel) -> None:
    answer = channel.unary_unary(UNARY["UnaryCall"])(message(LARGE_REQUEST, size=LARGE_RESPONSE), timeout=WAIT_S)
    assert answer == bytes(LARGE_RESPONSE)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_unary_both_ways(channel: grpc.Channel, compression: grpc.Compression) -> None:
    sent = message(LARGE_REQUEST)
    answer, call = channel.unary_unary(UNARY["UnaryCall"]).with_call(sent, compression=compression, timeout=WAIT_S)
    assert answer == sent
    wanted = "gzip" if compression == grpc.Compression.Gzip else "deflate"
    assert dict(call.initial_metadata()).get("grpc-encoding", wanted) == wanted


def test_compressed_stream(channel: grpc.Channel) -> None:
    call = channel.stream_stream(STREAMS["FullDuplexCall"])
    got = call(
        iter([message(5000, sizes=[9000]), message(sizes=[3])]), compression=grpc.Compression.Gzip, timeout=WAIT_S
    )
    assert [len(one) for one in got] == [9000, 3]


def test_client_streaming(channel: grpc.Channel) -> None:
    sent = [message(n) for n in (27_182, 8, 1_828, 45_904)]
    answer = channel.stream_unary(STREAMS["StreamingInputCall"])(iter(sent), timeout=WAIT_S)
    assert json.loads(answer) == {"total": sum(map(len, sent))}


def test_server_streaming(channel: grpc.Channel) -> None:
    answers = channel.unary_stream(STREAMS["StreamingOutputCall"])(message(sizes=SIZES), timeout=WAIT_S)
    assert [len(one) for one in answers] == SIZES


def test_ping_pong(channel: grpc.Channel) -> None:
    gone_ahead = threading.Semaphore(1)

    def ask() -> Iterator[bytes]:
        for size in SIZES:
            gone_ahead.acquire()
            yield message(LARGE_REQUEST, sizes=[size])

    got = []
    for answer in channel.stream_stream(STREAMS["FullDuplexCall"])(ask(), timeout=WAIT_S):
        got.append(len(answer))
        gone_ahead.release()
    assert got == SIZES


def test_empty_stream(channel: grpc.Channel) -> None:
    assert list(channel.stream_stream(STREAMS["FullDuplexCall"])(iter(()), timeout=WAIT_S)) == []


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_ten_megabytes_of_answers_wait_for_a_slow_reader(
    channel: grpc.Channel, compression: grpc.Compression | None
) -> None:
    """Packed ones are a hundredth of that: what waits is counted as it is on the wire."""
    ask = channel.unary_stream(STREAMS["StreamingOutputCall"])
    answers = ask(message(sizes=[1 << 20] * 10), timeout=WAIT_S, compression=compression)
    first = next(answers)
    assert len(first) == 1 << 20
    assert [len(one) for one in answers] == [1 << 20] * 9


def test_many_small_answers_do_not_wear_the_count_out(server: InteropServer, channel: grpc.Channel) -> None:
    ask = channel.unary_stream(STREAMS["StreamingOutputCall"])
    answers = ask(message(sizes=[1] * 5000 + [1 << 20] * 3), timeout=WAIT_S)
    assert sum(len(one) for one in answers) == 5000 + (3 << 20)


def test_a_server_that_takes_nothing_holds_its_client_back(server: InteropServer, channel: grpc.Channel) -> None:
    server.is_paused.set()
    sent = []

    def ask() -> Iterator[bytes]:
        for k in range(1000):
            sent.append(k)
            yield bytes(64 << 10)

    call = channel.stream_stream(STREAMS["FullDuplexCall"])(ask())
    until(lambda: server.num_messages == 4, "as many messages as there was credit for")
    held = len(sent)
    until(lambda: server.transport.statistics()["buffered_bytes"] > 0, "some wait in the transport")
    assert server.num_messages == 4
    assert server.transport.statistics()["buffered_bytes"] < 4 << 20
    assert held < 1000
    call.cancel()
    until(lambda: 1 in server.ended, "the server hears of it")
    until(lambda: server.transport.statistics()["buffered_bytes"] == 0, "nothing of it stays")


@pytest.mark.parametrize("name", ["UnaryCall", "FullDuplexCall"])
def test_status_code_and_message(channel: grpc.Channel, name: str) -> None:
    asked = message(status=[2, "test status message"])
    with pytest.raises(grpc.RpcError) as failed:
        if name == "UnaryCall":
            channel.unary_unary(UNARY[name])(asked, timeout=WAIT_S)
        else:
            list(channel.stream_stream(STREAMS[name])(iter([asked]), timeout=WAIT_S))
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.UNKNOWN, "test status message")


def test_status_details(channel: grpc.Channel) -> None:
    """google.rpc.Status beside the status, as bytes."""
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(UNARY["UnaryCall"])(message(status=[5, "gone"], details=[8, 5, 0, 255]), timeout=WAIT_S)
    trailing = dict(failed.value.trailing_metadata())
    assert trailing["grpc-status-details-bin"] == bytes([8, 5, 0, 255])


def test_answers_that_no_header_could_carry_are_refused_before_any_is_sent(server: InteropServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        asked = channel.unary_unary(UNARY["UnaryCall"]).future(message(sleep=True), timeout=WAIT_S)
        until(lambda: len(server.seen) == 1, "the call is there")
        call = server.seen[0]
        for trailers in (
            (("Upper", "x"),),
            (("te", "x"),),
            (("k", "line\nbreak"),),
            (("k",),),
            (("grpc-status", "0"),),
        ):
            with pytest.raises((ValueError, TypeError)):
                server.transport.reply([(call, 0, b"", "", trailers)])
        assert server.transport.reply([(call, 0, b"late", "", (("k", "v"),))]) is None
        assert server.transport.reply([(call, 0, b"twice", "", None)]) == [0]
        assert asked.result(WAIT_S) == b"late"


def test_special_status_message(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(UNARY["UnaryCall"])(message(status=[2, SPECIAL]), timeout=WAIT_S)
    assert failed.value.details() == SPECIAL


@pytest.mark.parametrize("path", [UNARY["UnimplementedCall"], "/grpc.testing.UnimplementedService/UnimplementedCall"])
def test_unimplemented_method_and_service(channel: grpc.Channel, path: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(path)(b"", timeout=WAIT_S)
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel_after_begin(server: InteropServer, channel: grpc.Channel) -> None:
    never = threading.Event()
    call = channel.stream_unary(STREAMS["StreamingInputCall"]).future(iter(never.wait, True))
    until(lambda: server.transport.statistics()["calls"] == 1, "the call is there")
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED
    until(lambda: list(server.ended) == [1], "the server hears of it")
    never.set()


def test_cancel_after_first_response(server: InteropServer, channel: grpc.Channel) -> None:
    release = threading.Event()

    def ask() -> Iterator[bytes]:
        yield message(sizes=[31_415])
        release.wait(WAIT_S)

    call = channel.stream_stream(STREAMS["FullDuplexCall"])(ask())
    assert len(next(call)) == 31_415
    call.cancel()
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() == grpc.StatusCode.CANCELLED
    until(lambda: list(server.ended) == [1], "the server hears of it")
    release.set()


@pytest.mark.parametrize("name", ["UnaryCall", "FullDuplexCall"])
def test_timeout_on_sleeping_server(server: InteropServer, channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        if name == "UnaryCall":
            channel.unary_unary(UNARY[name])(message(sleep=True), timeout=0.05)
        else:
            never = threading.Event()
            list(channel.stream_stream(STREAMS[name])(iter(never.wait, True), timeout=0.05))
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: bool(server.ended), "the server hears of it")


def test_custom_metadata(channel: grpc.Channel) -> None:
    sent = (
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab\0"),
    )
    _, call = channel.unary_unary(UNARY["UnaryCall"]).with_call(message(), metadata=sent, timeout=WAIT_S)
    assert sent[0] in [tuple(pair) for pair in call.initial_metadata()]
    assert sent[1] in [tuple(pair) for pair in call.trailing_metadata()]
    stream = channel.stream_stream(STREAMS["FullDuplexCall"])(iter([message(sizes=[1])]), metadata=sent, timeout=WAIT_S)
    assert sent[0] in [tuple(pair) for pair in stream.initial_metadata()]
    list(stream)
    assert sent[1] in [tuple(pair) for pair in stream.trailing_metadata()]


def test_a_message_over_the_limit_is_refused_and_the_connection_lives() -> None:
    with InteropServer(max_message_bytes=10_000) as server, grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(UNARY["UnaryCall"])
        with pytest.raises(grpc.RpcError) as refused:
            call(message(10_001), timeout=WAIT_S)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "10001 bytes; allowed 10000" in refused.value.details()
        with pytest.raises(grpc.RpcError) as bomb:
            call(message(5_000_000), compression=grpc.Compression.Gzip, timeout=WAIT_S)
        assert bomb.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(message(10_000), timeout=WAIT_S) == message(10_000)


def test_many_metadata_are_refused_and_the_connection_lives(server: InteropServer, channel: grpc.Channel) -> None:
    call = channel.unary_unary(UNARY["EmptyCall"])
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", metadata=[(f"k{i}", "v" * 500) for i in range(60)], timeout=WAIT_S)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(b"", timeout=WAIT_S) == b""


def test_goaway_lets_calls_finish(server: InteropServer, channel: grpc.Channel) -> None:
    call = channel.stream_stream(STREAMS["FullDuplexCall"])
    release = threading.Event()

    def ask() -> Iterator[bytes]:
        yield message(sizes=[10])
        release.wait(WAIT_S)
        yield message(sizes=[20])

    answers = call(ask(), timeout=WAIT_S)
    assert len(next(answers)) == 10
    drained = threading.Thread(target=lambda: server.transport.drain(1 << 62))
    drained.start()
    release.set()
    assert [len(one) for one in answers] == [20]
    drained.join(WAIT_S)
    assert not drained.is_alive()


def test_the_asynchronous_client(server: InteropServer) -> None:
    async def talk() -> None:
        async with aio.insecure_channel(server.target) as channel:
            unary = channel.unary_unary(UNARY["UnaryCall"])
            answers = await asyncio.gather(*[unary(message(size=n), timeout=WAIT_S) for n in range(200)])
            assert [len(one) for one in answers] == list(range(200))
            duplex = channel.stream_stream(STREAMS["FullDuplexCall"])(timeout=WAIT_S)
            for size in SIZES:
                await duplex.write(message(sizes=[size]))
                assert len(await duplex.read()) == size
            await duplex.done_writing()
            assert await duplex.read() is aio.EOF
            with pytest.raises(aio.AioRpcError) as failed:
                await unary(message(status=[5, SPECIAL]), timeout=WAIT_S)
            assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, SPECIAL)
            sleeping = unary(message(sleep=True))
            await asyncio.sleep(0)
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping

    asyncio.run(talk())


def test_several_threads_share_the_port() -> None:
    with InteropServer(threads=3) as server:
        for _ in range(12):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(server.target, options=options) as channel:
                futures = [channel.unary_unary(UNARY["UnaryCall"]).future(message(size=n)) for n in range(50)]
                assert [len(one.result(WAIT_S)) for one in futures] == list(range(50))
