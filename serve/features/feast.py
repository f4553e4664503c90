"""Features that another team keeps in Feast's online store on Redis, read beside our own and put in their place.

A batch's events enter; columns of values leave, read in one round trip. Called by the fraud pipeline while it fetches
features. The layout is Feast's (entity key serialization version 3): a hash per entity, whose key is the serialized
entity key with the project's name behind it and whose fields are 32-bit MurmurHash3 of `view:feature`, little endian;
the values are `feast.types.Value` messages.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import mmh3
import numpy as np
import numpy.typing as npt

from serve.features.breaker import Breaker
from serve.features.redis_connection import Address, Lazily, connect
from serve.features.store import Events
from serve.features.windows import FEATURES

Rows = npt.NDArray[np.float32]

_STRING, _INT64 = 2, 4  # of feast.types.ValueType
_INT32_VAL, _INT64_VAL, _DOUBLE_VAL, _FLOAT_VAL, _BOOL_VAL = 3, 4, 5, 6, 7  # fields of feast.types.Value
_VARINT, _FIXED64, _FIXED32 = 0, 1, 5
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class FeastView:
    """One feature view: the entity it is about, and which of its features stand for which of ours."""

    view: str
    entity: Literal["customer", "terminal"]
    join_key: str
    is_integer: bool
    """The entity's ids are INT64 in Feast; ids of ours that are no integers are not in it."""
    features: Mapping[str, str]
    """Our feature's name to Feast's."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Values [n, columns] for `columns` of the model's rows; NaN leaves what is there."""

    columns: Sequence[int]
    values: Rows

    def put_into(self, rows: Rows) -> None:
        """Replaces what Feast knows."""
        for k, column in enumerate(self.columns):
            known = ~np.isnan(self.values[:, k])
            rows[known, column] = self.values[known, k]


class FeastSource:
    """Reads views of one project. One thread at a time; after failures in a row it is left alone for a while."""

    def __init__(self, address: Address, project: str, views: Sequence[FeastView], timeout_ms: float) -> None:
        self._client = Lazily(lambda: connect(address, timeout_ms / 1e3))
        self._project = project.encode()
        self._views = tuple(views)
        self._fields = [[field_of(view.view, name) for name in view.features.values()] for view in views]
        self._columns = [FEATURES.index(name) for view in views for name in view.features]
        self._breaker = Breaker()

    def read(self, events: Events) -> Overrides | None:
        """The batch's values; None when Feast's store does not answer."""
        import redis

        if not self._breaker.allows(time.monotonic_ns()):
            return None
        try:
            values = self._read(events)
        except (redis.RedisError, redis.exceptions.RedisClusterException):
            self._breaker.failed(time.monotonic_ns())
            return None
        self._breaker.succeeded()
        return Overrides(self._columns, values)

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def _read(self, events: Events) -> Rows:
        n = len(events.transaction_ids)
        asked: list[tuple[int, dict[str, int]]] = []
        pipeline = self._client().pipeline(transaction=False)
        for number, view in enumerate(self._views):
            names = events.customer_ids if view.entity == "customer" else events.terminal_ids
            places: dict[str, int] = {}
            for name in names:
                if name not in places and (key := entity_key(view, name)) is not None:
                    places[name] = len(places)
                    pipeline.hmget(key + self._project, self._fields[number])
            asked.append((number, places))
        answers = iter(pipeline.execute())
        values = np.full((n, len(self._columns)), np.nan, np.float32)
        begin = 0
        for number, places in asked:
            view = self._views[number]
            found = [[number_of(value) for value in next(answers)] for _ in places]
            names = events.customer_ids if view.entity == "customer" else events.terminal_ids
            for row, name in enumerate(names):
                if name in places:
                    values[row, begin : begin + len(view.features)] = found[places[name]]
            begin += len(view.features)
        return values


def entity_key(view: FeastView, name: str) -> bytes | None:
    """The serialized entity key of one id; None for an id that Feast cannot have."""
    join_key = view.join_key.encode()
    head = struct.pack("<III", 1, _STRING, len(join_key)) + join_key
    if not view.is_integer:
        value = name.encode()
        return head + struct.pack("<II", _STRING, len(value)) + value
    try:
        return head + struct.pack("<IIq", _INT64, 8, int(name))
    except (ValueError, struct.error):
        return None


def field_of(view: str, feature: str) -> bytes:
    """The hash's field of a feature."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def number_of(value: bytes | None) -> float:
    """A `feast.types.Value` as a number; NaN for none, for text and for lists."""
    if not value:
        return math.nan
    field, wire = value[0] >> 3, value[0] & 7
    if wire == _FIXED64 and field == _DOUBLE_VAL and len(value) == 9:
        return float(struct.unpack("<d", value[1:])[0])
    if wire == _FIXED32 and field == _FLOAT_VAL and len(value) == 5:
        return float(struct.unpack("<f", value[1:])[0])
    if wire == _VARINT and field in (_INT32_VAL, _INT64_VAL, _BOOL_VAL):
        return _varint(value[1:])
    return math.nan


def _varint(data: bytes) -> float:
    """A signed 64-bit number; NaN where it does not end."""
    number = 0
    for place, byte in enumerate(data[:_MAX_VARINT_BYTES]):
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            number &= (1 << 64) - 1
            return float(number - (1 << 64) if number >> 63 else number)
    return math.nan
