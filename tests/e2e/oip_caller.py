"""The four clients of `tritonclient`, unmodified, behind one blocking way to call them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from server import Server

CLIENTS = ("http", "grpc", "http.aio", "grpc.aio")


@dataclass
class Caller:
    """One of the four clients behind one blocking way to call it."""

    name: str
    types: ModuleType
    client: Any
    run: Callable[[Awaitable[Any]], Any]

    @property
    def is_http(self) -> bool:
        return self.name.startswith("http")

    def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        result = getattr(self.client, method)(*args, **options)
        return self.run(result) if inspect.isawaitable(result) else result

    def json(self, method: str, *args: Any) -> Any:
        """Metadata in one form: gRPC clients give messages unless told otherwise."""
        return self(method, *args) if self.is_http else self(method, *args, as_json=True)

    def input(self, name: str, values: np.ndarray[Any, Any], datatype: str) -> Any:
        tensor = self.types.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        return tensor


@contextmanager
def calling(server: Server, kind: str) -> Iterator[Caller]:
    """A client of one of `CLIENTS`, on a connection of its own."""
    address = server.url.removeprefix("http://") if kind.startswith("http") else server.grpc
    types = {"h": tritonclient.http, "g": tritonclient.grpc}[kind[0]]
    module = {"http.aio": tritonclient.http.aio, "grpc.aio": tritonclient.grpc.aio}.get(kind, types)
    with asyncio.Runner() as runner:

        async def opened() -> Any:
            return module.InferenceServerClient(address)

        client = runner.run(opened())
        made = Caller(kind, types, client, lambda awaitable: runner.run(_as_coroutine(awaitable)))
        yield made
        made("close")


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
