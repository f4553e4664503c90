"""The gRPC methods of a replica, as both listeners serve them: tables by full method path, bytes in and bytes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

from serve.batching.arrival import Route
from serve.budgets.deadline import LOAD_BUDGET_MS, OTHER_BUDGET_MS
from serve.context import RequestContext
from serve.errors import HeadroomError, NotReady
from serve.ingress.wire.infer_codecs import MODEL_INFER, model_of, unknown_model

DirectMethod = Callable[[bytes, RequestContext], bytes | Awaitable[bytes]]
"""Answered by the listener: health, metadata, configuration, records. Raises HeadroomError."""
StreamMethod = Callable[[AsyncIterator[bytes], RequestContext], AsyncGenerator[bytes, None]]
"""Messages in, messages out, each in its own time. Raises HeadroomError."""
ModelKey = tuple[str, str]


@dataclass(slots=True)
class GrpcMethods:
    """`batched`, `direct` and `closed` are unary. `closed` says why a method cannot be answered. Only `models` changes, as a
    whole, by a listener's `change_models`.
    """

    batched: Mapping[str, Route]
    direct: Mapping[str, DirectMethod]
    streams: Mapping[str, StreamMethod] = field(default_factory=dict)
    scored: Mapping[str, Route] = field(default_factory=dict)
    """Bidirectional streams whose messages are items of their own, answered as they come, by batches."""
    closed: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[ModelKey, Route] = field(default_factory=dict)
    """Of `ModelInfer`, by name and version."""
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
        key = model_of(payload)
        route = self.models.get(key)
        if route is None:
            raise self.no_model(*key)
        return route
