"""The gRPC clients: thin shells that send what the flow asks for over grpcio, on a thread or on an event loop.

In: values and options of a call. Out: its answer. Statuses and messages are read in `wire/`, retries decided in `flow`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio

from headroom_client.errors import MEANS_NOT_READY, HeadroomClientError
from headroom_client.flow import RetryPolicy, checked_timeout_ms, drive, drive_async
from headroom_client.fraud import Transaction
from headroom_client.fraud_api import AsyncStreamingFraud, Result, StreamingFraud
from headroom_client.options import CallContext, CallOptions, call_context, lower_case
from headroom_client.wire import fraud_proto
from headroom_client.wire import grpc as wire
from headroom_client.wire.operation import Operation, Outcome

_STREAM = fraud_proto.SCORE_STREAM

Request = TypeVar("Request")
Answer = TypeVar("Answer")

DEFAULT_TARGET = "127.0.0.1:8001"
"""Triton's port, which is Headroom's too."""

_CHANNEL_OPTIONS = (
    # Retries are decided in one place, the flow. grpcio reconnects after a second by default, so that a retry within
    # the deadline would meet the same refusal without ever asking the server; 100 ms is its least.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def _metadata(call: CallContext) -> tuple[tuple[str, str], ...]:
    return tuple(call.headers.items())


def _error(error: grpc.RpcError, call: CallContext) -> HeadroomClientError:
    metadata = wire.text_metadata(error.trailing_metadata())
    return wire.grpc_error(error.code().name, error.details() or "", metadata, call.request_id)


def _item(body: bytes, call: CallContext) -> Result:
    return _STREAM.parse(wire.grpc_reply(body, {}, call.request_id))


def _stream_timeout_s(options: CallOptions) -> float | None:
    timeout_ms = options.get("timeout_ms")
    return None if timeout_ms is None else checked_timeout_ms(timeout_ms) / 1e3


class GrpcClient:
    """Headroom over gRPC, synchronous. Thread-safe; one channel, whose calls share a connection.

    `timeout_ms` is every call's deadline, tries and waits included; the server gets what is left of it with each try.
    `headers` go with every call as metadata; with `credentials` the channel is encrypted. Close it, or use it in a
    `with`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_ms: float = 1_000.0,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._timeout_ms = checked_timeout_ms(timeout_ms)
        self._headers = lower_case(headers or {})
        self._policy = RetryPolicy(retries)
        self._channel = (
            grpc.secure_channel(target, credentials, _CHANNEL_OPTIONS)
            if credentials
            else grpc.insecure_channel(target, _CHANNEL_OPTIONS)
        )
        self.fraud = StreamingFraud(
            self._unary(fraud_proto.SCORE),
            self._unary(fraud_proto.SCORE_BATCH),
            partial(self._score_stream, self._channel.stream_stream(_STREAM.path, _STREAM.encode, None)),
        )
        self._ready = self._unary(wire.READY)

    def ready(self, **options: Unpack[CallOptions]) -> bool:
        """Whether the server says that it is ready; False too when it cannot be reached. Asks once."""
        try:
            return self._ready(None, options)
        except MEANS_NOT_READY:
            return False

    def close(self) -> None:
        """Closes the channel; calls under way end as Cancelled, a call afterwards raises ValueError."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unary(self, operation: Operation[Request, Answer]) -> Callable[[Request, CallOptions], Answer]:
        return partial(self._call, operation, self._channel.unary_unary(operation.path, None, None))

    def _call(
        self,
        operation: Operation[Request, Answer],
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes],
        request: Request,
        options: CallOptions,
    ) -> Answer:
        call = call_context(options, self._timeout_ms, self._headers)
        flow = self._policy.flow(operation, call.timeout_ms, call.request_id)
        return drive(flow, partial(self._send, method, operation.encode(request), call))

    def _send(
        self, method: grpc.UnaryUnaryMultiCallable[bytes, bytes], body: bytes, call: CallContext, timeout_ms: float
    ) -> Outcome:
        try:
            answer, ended = method.with_call(body, timeout=timeout_ms / 1e3, metadata=_metadata(call))
        except grpc.RpcError as error:
            return _error(error, call)
        return wire.grpc_reply(answer, wire.text_metadata(ended.trailing_metadata()), call.request_id)

    def _score_stream(
        self,
        method: grpc.StreamStreamMultiCallable[Transaction, bytes],
        transactions: Iterable[Transaction],
        options: CallOptions,
    ) -> Iterator[Result]:
        call = call_context(options, self._timeout_ms, self._headers)
        results = method(iter(transactions), timeout=_stream_timeout_s(options), metadata=_metadata(call))
        try:
            for body in results:
                yield _item(body, call)
        except grpc.RpcError as error:
            raise _error(error, call) from error
        finally:
            results.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leaves it bare


class AsyncGrpcClient:
    """Headroom over gRPC for asyncio; the parameters are GrpcClient's. Made and used on one running event loop."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_ms: float = 1_000.0,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        asyncio.get_running_loop()  # raises here; grpcio would bind the channel to a loop that never runs
        self._timeout_ms = checked_timeout_ms(timeout_ms)
        self._headers = lower_case(headers or {})
        self._policy = RetryPolicy(retries)
        self._channel = (
            grpc.aio.secure_channel(target, credentials, _CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS)
        )
        self.fraud = AsyncStreamingFraud(
            self._unary(fraud_proto.SCORE),
            self._unary(fraud_proto.SCORE_BATCH),
            partial(self._score_stream, self._channel.stream_stream(_STREAM.path, _STREAM.encode, None)),
        )
        self._ready = self._unary(wire.READY)

    async def ready(self, **options: Unpack[CallOptions]) -> bool:
        """Whether the server says that it is ready; False too when it cannot be reached. Asks once."""
        try:
            return await self._ready(None, options)
        except MEANS_NOT_READY:
            return False

    async def close(self) -> None:
        """Closes the channel; calls under way end as Cancelled, a call afterwards raises UsageError of grpc.aio."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _unary(self, operation: Operation[Request, Answer]) -> Callable[[Request, CallOptions], Awaitable[Answer]]:
        return partial(self._call, operation, self._channel.unary_unary(operation.path, None, None))

    async def _call(
        self,
        operation: Operation[Request, Answer],
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes],
        request: Request,
        options: CallOptions,
    ) -> Answer:
        call = call_context(options, self._timeout_ms, self._headers)
        flow = self._policy.flow(operation, call.timeout_ms, call.request_id)
        return await drive_async(flow, partial(self._send, method, operation.encode(request), call))

    async def _send(
        self, method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], body: bytes, call: CallContext, timeout_ms: float
    ) -> Outcome:
        under_way = method(body, timeout=timeout_ms / 1e3, metadata=_metadata(call))
        try:
            answer = await under_way
        except grpc.RpcError as error:
            return _error(error, call)
        return wire.grpc_reply(answer, wire.text_metadata(await under_way.trailing_metadata()), call.request_id)

    async def _score_stream(
        self,
        method: grpc.aio.StreamStreamMultiCallable[Transaction, bytes],
        transactions: AsyncIterable[Transaction],
        options: CallOptions,
    ) -> AsyncIterator[Result]:
        call = call_context(options, self._timeout_ms, self._headers)
        results = method(aiter(transactions), timeout=_stream_timeout_s(options), metadata=_metadata(call))
        try:
            async for body in results:
                yield _item(body, call)
        except grpc.RpcError as error:
            raise _error(error, call) from error
        finally:
            results.cancel()
