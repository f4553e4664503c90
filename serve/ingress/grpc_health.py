"""`grpc.health.v1` and server reflection (v1 and v1alpha), as methods of either listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from serve.context import RequestContext
from serve.errors import InvalidInput, NotFound
from serve.ingress.grpc_methods import DirectMethod, StreamMethod

HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class Health:
    """Serving until `shut_down`. Watchers hear of it, from whichever loop they wait in."""

    def __init__(self, service_names: Sequence[str]) -> None:
        self._names = frozenset(("", *service_names))
        self._is_serving = True
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def shut_down(self) -> None:
        """From any thread: every service is NOT_SERVING from now on."""
        self._is_serving = False
        for loop, changed in tuple(self._watchers):
            loop.call_soon_threadsafe(changed.set)

    def methods(self) -> Mapping[str, DirectMethod]:
        """Unary ones, by path."""
        return {f"/{HEALTH}/Check": self._check}

    def streams(self) -> Mapping[str, StreamMethod]:
        """Streaming ones, by path."""
        return {f"/{HEALTH}/Watch": self._watch}

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._names:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        return serving if self._is_serving else not_serving

    def _check(self, payload: bytes, _: RequestContext) -> bytes:
        service = _service(payload)
        if service not in self._names:
            raise NotFound(f"no service is named {service[:128]!r}")
        answer: bytes = health_pb2.HealthCheckResponse(status=self._status(service)).SerializeToString()
        return answer

    async def _watch(self, messages: AsyncIterator[bytes], _: RequestContext) -> AsyncGenerator[bytes, None]:
        """The state now, and again whenever it changes."""
        async for payload in messages:
            service = _service(payload)
            break
        else:
            raise InvalidInput("Watch needs a message")
        changed = asyncio.Event()
        watcher = (asyncio.get_running_loop(), changed)
        self._watchers.add(watcher)
        try:
            while True:
                changed.clear()
                yield health_pb2.HealthCheckResponse(status=self._status(service)).SerializeToString()
                if not self._is_serving:  # ends the stream: its client asks again, elsewhere
                    return
                await changed.wait()
        finally:
            self._watchers.discard(watcher)


def reflection_streams(service_names: Sequence[str]) -> Mapping[str, StreamMethod]:
    """Reflection on the services named: both versions, whose messages are the same on the wire."""
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    servicer: Any = reflection.ReflectionServicer([*service_names, HEALTH, REFLECTION[1]])

    async def describe(messages: AsyncIterator[bytes], _: RequestContext) -> AsyncGenerator[bytes, None]:
        async for payload in messages:
            request = _parsed(reflection_pb2.ServerReflectionRequest, payload)
            for answer in servicer.ServerReflectionInfo(iter((request,)), None):
                yield answer.SerializeToString()

    return {f"/{service}/ServerReflectionInfo": describe for service in REFLECTION}


def _service(payload: bytes) -> str:
    return str(_parsed(health_pb2.HealthCheckRequest, payload).service)


def _parsed(kind: Any, payload: bytes) -> Any:
    try:
        return kind.FromString(payload)
    except DecodeError:
        raise InvalidInput(f"the message is not a valid {kind.DESCRIPTOR.full_name}") from None
