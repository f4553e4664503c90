"""The gRPC methods of a replica, as both listeners serve them: tables by full method path, bytes in and bytes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from serve.batching.arrival import Route, StreamCodec
from serve.budgets.deadline import LOAD_BUDGET_MS, OTHER_BUDGET_MS
from serve.context import RequestContext
from serve.errors import HeadroomError, NotReady
from serve.ingress.wire.infer_codecs import MODEL_INFER, MODEL_STREAM_INFER, model_of, stream_error, unknown_model

DirectMethod = Callable[[bytes, RequestContext], bytes | Awaitable[bytes]]
"""Answered by the listener: health, metadata, configuration, records. Raises HeadroomError."""
StreamMethod = Callable[[AsyncIterator[bytes], RequestContext], AsyncGenerator[bytes, None]]
"""Messages in, messages out, each in its own time. Raises HeadroomError."""
ModelKey = tuple[str, str]


class InferRoutes(NamedTuple):
    """Of one model: `ModelInfer`, and a message of `ModelStreamInfer`."""

    unary: Route
    stream: Route


@dataclass(frozen=True, slots=True)
class ItemStream:
    """A bidirectional stream whose messages are items of their own, answered as they come, by batches."""

    route: Callable[[bytes], Route]
    """Where a message goes. Raises HeadroomError."""
    encode_error: Callable[[bytes, HeadroomError], bytes]
    """The message that stands for an item's error."""


@dataclass(slots=True)
class GrpcMethods:
    """`batched`, `direct` and `closed` are unary. `closed` says why a method cannot be answered. Only `models` changes, as a
    whole, by a listener's `change_models`.
    """

    batched: Mapping[str, Route]
    direct: Mapping[str, DirectMethod]
    streams: Mapping[str, StreamMethod] = field(default_factory=dict)
    scored: Mapping[str, Route] = field(default_factory=dict)
    """Item streams of a pipeline, whose every message has one route."""
    closed: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[ModelKey, InferRoutes] = field(default_factory=dict)
    """By name and version."""
    slow: Collection[str] = ()
    """Direct methods that load or unload."""
    no_model: Callable[[str, str], HeadroomError] = unknown_model
    """Why there is none."""

    @property
    def batched_paths(self) -> tuple[str, ...]:
        """The unary methods that have a route, or should have."""
        return (*self.batched, *self.closed, MODEL_INFER)

    def budget_ms(self, path: str) -> float:
        """Of a method that no batch answers."""
        return LOAD_BUDGET_MS if path in self.slow else OTHER_BUDGET_MS

    def route(self, path: str, payload: bytes) -> Route:
        """Where a message of one of `batched_paths` goes. Raises HeadroomError."""
        route = self.batched.get(path)
        if route is not None:
            return route
        if (reason := self.closed.get(path)) is not None:
            raise NotReady(reason)
        return self._of_model(payload).unary

    def item_stream(self, path: str) -> ItemStream | None:
        """The item stream of that path."""
        if path == MODEL_STREAM_INFER:
            return ItemStream(lambda payload: self._of_model(payload).stream, stream_error)
        route = self.scored.get(path)
        if route is None:
            return None
        codec = cast(StreamCodec, route.codec)
        return ItemStream(lambda _: route, lambda payload, error: codec.encode_error(payload, error).body)

    def _of_model(self, payload: bytes) -> InferRoutes:
        key = model_of(payload)
        routes = self.models.get(key)
        if routes is None:
            raise self.no_model(*key)
        return routes
