"""The HTTP clients: thin shells that send what the flow asks for over httpx, on a thread or on an event loop.

In: values and options of a call. Out: its answer. Statuses and bodies are read in `wire/`, retries decided in `flow`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Self, TypeVar, Unpack

import httpx

from headroom_client.budgets import PipelineBudget
from headroom_client.errors import MEANS_NOT_READY, ConnectionFailed, DeadlineExceeded
from headroom_client.flow import RetryPolicy, checked_timeout_ms, drive, drive_async
from headroom_client.fraud_api import AsyncFraud, Fraud
from headroom_client.options import CallContext, CallOptions, call_context, lower_case
from headroom_client.wire import fraud_json
from headroom_client.wire import http as wire
from headroom_client.wire.operation import Operation, Outcome

Request = TypeVar("Request")
Answer = TypeVar("Answer")

DEFAULT_URL = "http://127.0.0.1:8000"
"""Triton's port, which is Headroom's too."""

_MIN_PHASE_S = 1e-3
_UNLIMITED = httpx.Timeout(None)


class _TimeLeft(Mapping[str, float]):
    """httpx's "timeout" extension. Connecting, waiting for the pool, writing and reading each ask when they begin.

    httpx alone gives each of these phases the whole timeout again; this gives each what the ones before it left.
    """

    def __init__(self, timeout_ms: float) -> None:
        self._end_s = time.monotonic() + timeout_ms / 1e3

    def __getitem__(self, phase: str) -> float:
        return max(self._end_s - time.monotonic(), _MIN_PHASE_S)

    def __iter__(self) -> Iterator[str]:
        return iter(("connect", "pool", "write", "read"))

    def __len__(self) -> int:
        return 4


def _headers(call: CallContext, timeout_ms: float) -> dict[str, str]:
    left_ms = max(timeout_ms, 1e-3)  # written with three digits, and the server refuses a deadline of 0
    return {**call.headers, "content-type": "application/json", "x-request-timeout-ms": f"{left_ms:.3f}"}


def _method(body: bytes) -> str:
    return "POST" if body else "GET"


def _outcome(response: httpx.Response, call: CallContext) -> Outcome:
    return wire.http_outcome(response.status_code, lower_case(response.headers), response.content, call.request_id)


def _late(call: CallContext) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {call.timeout_ms:g} ms", request_id=call.request_id)


def _broken(url: httpx.URL, error: httpx.RequestError, call: CallContext) -> ConnectionFailed:
    text = f"{url.host}:{url.port or url.scheme} gave no answer: {error or type(error).__name__}"
    is_retryable = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
    return ConnectionFailed(text, request_id=call.request_id, is_retryable=is_retryable)


class Client:
    """Headroom over HTTP, synchronous. Thread-safe; one client per process and server keeps the connections warm.

    `timeout_ms` is every call's deadline, tries and waits included; the server gets what is left of it with each try.
    `headers` go with every call; `tls` replaces httpx's default verification of `https` servers;
    `max_connections` bounds the pool, a call beyond it waits inside its deadline. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_ms: float = 1_000.0,
        retries: int = 2,
        max_connections: int = 64,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_ms = checked_timeout_ms(timeout_ms)
        self._headers = lower_case(headers or {})
        self._policy = RetryPolicy(retries)
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        self._http = httpx.Client(base_url=url, limits=limits, verify=tls or True)
        self.fraud = Fraud(
            partial(self._call, fraud_json.SCORE),
            partial(self._call, fraud_json.SCORE_BATCH),
        )

    def budgets(self, **options: Unpack[CallOptions]) -> dict[str, PipelineBudget]:
        """Published budgets beside what was measured, by pipeline. Raises HeadroomClientError."""
        return self._call(wire.BUDGETS, None, options)

    def ready(self, **options: Unpack[CallOptions]) -> bool:
        """Whether the server says that it is ready; False too when it cannot be reached. Asks once."""
        try:
            return self._call(wire.READY, None, options)
        except MEANS_NOT_READY:
            return False

    def close(self) -> None:
        """Closes the connections; a call afterwards raises RuntimeError."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, operation: Operation[Request, Answer], request: Request, options: CallOptions) -> Answer:
        call = call_context(options, self._timeout_ms, self._headers)
        flow = self._policy.flow(operation, call.timeout_ms, call.request_id)
        return drive(flow, partial(self._send, operation.path, operation.encode(request), call))

    def _send(self, path: str, body: bytes, call: CallContext, timeout_ms: float) -> Outcome:
        request = self._http.build_request(
            _method(body),
            path,
            content=body,
            headers=_headers(call, timeout_ms),
            extensions={"timeout": _TimeLeft(timeout_ms)},
        )
        try:
            return _outcome(self._http.send(request), call)
        except httpx.TimeoutException:
            return _late(call)
        except httpx.RequestError as error:
            return _broken(request.url, error, call)


class AsyncClient:
    """Headroom over HTTP for asyncio; the parameters are Client's. To be used on one event loop."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_ms: float = 1_000.0,
        retries: int = 2,
        max_connections: int = 64,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_ms = checked_timeout_ms(timeout_ms)
        self._headers = lower_case(headers or {})
        self._policy = RetryPolicy(retries)
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, verify=tls or True, timeout=_UNLIMITED)
        self.fraud = AsyncFraud(
            partial(self._call, fraud_json.SCORE),
            partial(self._call, fraud_json.SCORE_BATCH),
        )

    async def budgets(self, **options: Unpack[CallOptions]) -> dict[str, PipelineBudget]:
        """Published budgets beside what was measured, by pipeline. Raises HeadroomClientError."""
        return await self._call(wire.BUDGETS, None, options)

    async def ready(self, **options: Unpack[CallOptions]) -> bool:
        """Whether the server says that it is ready; False too when it cannot be reached. Asks once."""
        try:
            return await self._call(wire.READY, None, options)
        except MEANS_NOT_READY:
            return False

    async def close(self) -> None:
        """Closes the connections; a call afterwards raises RuntimeError."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, operation: Operation[Request, Answer], request: Request, options: CallOptions) -> Answer:
        call = call_context(options, self._timeout_ms, self._headers)
        flow = self._policy.flow(operation, call.timeout_ms, call.request_id)
        return await drive_async(flow, partial(self._send, operation.path, operation.encode(request), call))

    async def _send(self, path: str, body: bytes, call: CallContext, timeout_ms: float) -> Outcome:
        request = self._http.build_request(_method(body), path, content=body, headers=_headers(call, timeout_ms))
        try:
            async with asyncio.timeout(timeout_ms / 1e3):
                return _outcome(await self._http.send(request), call)
        except TimeoutError:
            return _late(call)
        except httpx.RequestError as error:
            return _broken(request.url, error, call)
