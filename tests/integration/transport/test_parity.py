"""The same handlers behind both listeners give the same answers: 10 000 generated calls, wrong ones among them."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from serve.batching.arrival import Decoded, Encoded, Route
from serve.batching.collector import Collector
from serve.batching.outcome import Outcome
from serve.batching.runner import Batch, Runner
from serve.budgets.ladder import Ladder, Rung
from serve.context import RequestContext
from serve.errors import (
    DependencyFailed,
    Forbidden,
    HeadroomError,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    Unsupported,
)
from serve.ingress.grpc_aio import AioGrpcListener
from serve.ingress.grpc_health import Health, reflection_streams
from serve.ingress.grpc_methods import GrpcMethods
from serve.ingress.grpc_native import NativeGrpcListener
from serve.ingress.ledger import Ledger
from serve.observability.logs import AccessLog
from serve.observability.metrics import Metrics
from serve.settings import Limits

NUM_CALLS = 10_000
BUDGET_MS = 30_000.0
ERRORS: Sequence[HeadroomError] = (
    InvalidInput("amount is -1; allowed over 0 – ☺", field="transactions[3].amount"), NotFound("no such model"),
    NotReady("loading"), Overloaded("later", reason="budget", retry_after_ms=7), Forbidden("no"), TooLarge("much"),
    Unsupported("shared memory"), DependencyFailed("the store"), InvalidInput("field with ☺", field="inputs[☺]"),
)  # fmt: skip
OURS = ("error-kind", "error-field", "error-reason", "retry-after-ms", "grpc-retry-pushback-ms", "traceparent")
BATCHED, DIRECT, ASYNC, STREAM, SCORED, CLOSED = (f"/test.Parity/{name}" for name in ("B", "D", "A", "S", "I", "C"))


def work(payload: bytes) -> bytes:
    """`eN…` raises error N, `b` has a bug, anything else comes back in reverse."""
    if payload[:1] == b"e":
        raise ERRORS[payload[1] % len(ERRORS)]
    if payload[:1] == b"b":
        raise ZeroDivisionError
    return payload[::-1]


class Codec:
    endpoint = "Parity"

    def count_items(self, payload: bytes) -> int:
        return 1

    def timeout_us(self, payload: bytes) -> int | None:
        return None

    def decode(self, payload: bytes) -> Decoded:
        if payload[:1] == b"x":
            raise InvalidInput("x is not allowed", field="x")
        return Decoded((payload,), None)

    def encode(self, request: Any, outcomes: Sequence[Outcome[bytes]]) -> Encoded:
        if isinstance(outcomes[0], HeadroomError):
            raise outcomes[0]
        return Encoded(outcomes[0], "application/grpc")

    def encode_error(self, payload: bytes, error: HeadroomError) -> Encoded:
        return Encoded(f"error {error.kind}".encode(), "application/grpc")


class Flow:
    def run(self, items: Sequence[bytes], batch: Batch) -> Sequence[Outcome[bytes]]:
        def one(item: bytes) -> Outcome[bytes]:
            try:
                return work(item)
            except HeadroomError as error:
                return error

        return [one(item) for item in items]


async def later(payload: bytes) -> bytes:
    return work(payload)


async def stream(messages: AsyncIterator[bytes], _: RequestContext) -> AsyncGenerator[bytes, None]:
    async for payload in messages:
        yield work(payload)


@contextmanager
def listeners(folder: Path) -> Iterator[tuple[str, str]]:
    """Targets of the native one and of grpc.aio's, behind the same runner."""
    metrics = Metrics.open(folder / "metrics", version="0")
    access_log = AccessLog(folder / "access.log", max_lines_per_s=0)
    recorder = metrics.pipeline("parity", ("decode", "encode"), budget_ms=BUDGET_MS, stage_budgets_ms={})
    runner = Runner(
        Collector("parity", max_items=10_000), Flow(), Ladder((Rung("", 1.0),)), recorder, max_batch_items=64
    )
    route = Route(Codec(), runner, BUDGET_MS, recorder, "parity")
    health = Health(("test.Parity",))
    methods = GrpcMethods(
        batched={BATCHED: route},
        direct={DIRECT: lambda payload, _: work(payload), ASYNC: lambda payload, _: later(payload), **health.methods()},
        streams={STREAM: stream, **health.streams(), **reflection_streams(("grpc.health.v1.Health",))},
        scored={SCORED: route}, closed={CLOSED: "pipeline parity is not ready: no model"},
    )  # fmt: skip
    runner.start()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as reserved:
        listening.setblocking(False)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        targets = tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in (listening, reserved))
        both = (
            NativeGrpcListener(listening, methods, Limits(), Ledger("grpc", metrics, access_log), num_threads=1),
            AioGrpcListener(targets[1], methods, Limits(), Ledger("grpc", metrics, access_log)),
        )
        for listener in both:
            listener.start()
        try:
            yield targets[0], targets[1]
        finally:
            for listener in both:
                listener.drain(time.monotonic_ns() + 1_000_000_000)
            runner.stop(timeout_s=5)
            metrics.close()


def generated(random: Random) -> tuple[str, bytes | list[bytes], dict[str, Any]]:
    """A path, its message or messages, and how to call."""
    path = random.choice([BATCHED] * 6 + [DIRECT] * 3 + [ASYNC, STREAM, SCORED, CLOSED, "/test.Parity/None"])

    def payload() -> bytes:
        kind = random.choice([b"", b"", b"", b"ok", b"x", b"b", b"e" + bytes([random.randrange(20)])])
        return kind + random.randbytes(random.choice([0, 1, 50, 2000])).replace(b"e", b"_")

    metadata = []
    if random.random() < 0.3:
        metadata.append(("x-request-id", random.choice(["order-1", "with space", "x" * 129, "ok_2"])))
    if random.random() < 0.2:
        trace = random.choice(["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-no"])
        metadata.append(("traceparent", trace))
    if random.random() < 0.2:
        metadata.append(
            ("x-request-timeout-ms", random.choice(["20000", "0", "-1", "nan", "1e400", "5000.5", "a", ""]))
        )
    how: dict[str, Any] = {"metadata": metadata, "timeout": 20}
    if random.random() < 0.2:
        how["compression"] = random.choice([grpc.Compression.Gzip, grpc.Compression.Deflate])
    if path in (STREAM, SCORED):
        return path, [payload() for _ in range(random.randrange(4))], how
    return path, payload(), how


def outcome(channel: grpc.Channel, path: str, sent: bytes | list[bytes], how: dict[str, Any]) -> tuple[Any, ...]:
    """What a client can tell apart: code, details, bodies, our trailing metadata."""
    bodies: list[bytes] = []
    try:
        if isinstance(sent, list):
            call: Any = channel.stream_stream(path)(iter(sent), **how)
            bodies.extend(call)
        else:
            body, call = channel.unary_unary(path).with_call(sent, **how)
            bodies.append(body)
    except grpc.RpcError as error:
        call = error
    if path == SCORED:  # answers may overtake each other
        bodies.sort()
    trailing = dict(call.trailing_metadata() or ())
    ours = {name: trailing.get(name) for name in OURS}
    given_id = dict(how["metadata"]).get("x-request-id")
    echoed = trailing.get("x-request-id") == given_id if path not in (SCORED, "/test.Parity/None") else None
    details = None if call.code() is grpc.StatusCode.UNIMPLEMENTED and "/None" in path else call.details()
    return call.code(), details, bodies, ours, echoed


@pytest.mark.filterwarnings("ignore")
def test_both_listeners_answer_alike(tmp_path: Path) -> None:
    random = Random(17)
    with (
        listeners(tmp_path) as (native, aio),
        grpc.insecure_channel(native) as first,
        grpc.insecure_channel(aio) as second,
    ):
        codes: dict[grpc.StatusCode, int] = {}
        for number in range(NUM_CALLS):
            path, sent, how = generated(random)
            got, wanted = outcome(first, path, sent, how), outcome(second, path, sent, how)
            assert got == wanted, (number, path, sent, how)
            codes[got[0]] = codes.get(got[0], 0) + 1
    assert len(codes) >= 8, codes
