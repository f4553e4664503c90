"""Feast's layout on a real Redis, written as Feast documents it, read beside our own features."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.features.feast import FeastSource, FeastView, entity_key, field_of, number_of
from serve.features.redis_connection import parse_address
from serve.features.windows import FEATURES
from tests.redis_server import RedisServer
from tests.unit.features.store_cases import NOW_S, events_of

TERMINALS = FeastView("terminal_stats", "terminal", "terminal_id", True, {"terminal_risk_7d": "risk_7d"})
CUSTOMERS = FeastView(
    "card_stats", "customer", "card", False, {"customer_count_24h": "n_day", "customer_average_24h": "avg_day"}
)  # fmt: skip
BATCH = events_of(("a", "kim", "7", NOW_S, 1), ("b", "lee", "7", NOW_S, 1), ("c", "kim", "x", NOW_S, 1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield one
    one.kill()


def opened(server: RedisServer) -> FeastSource:
    return FeastSource(parse_address(server.address), "payments", (TERMINALS, CUSTOMERS), 2_000)


def test_entity_keys_and_fields_are_feasts():
    """The layout of serialization version 3: number of keys; type, length, name; type, length, value."""
    assert entity_key(TERMINALS, "7") == bytes.fromhex(
        "01000000" "02000000" "0b000000" + b"terminal_id".hex() + "04000000" "08000000" "0700000000000000"
    )  # fmt: skip
    assert entity_key(CUSTOMERS, "kim") == bytes.fromhex(
        "01000000" "02000000" "04000000" + b"card".hex() + "02000000" "03000000" + b"kim".hex()
    )  # fmt: skip
    assert entity_key(TERMINALS, "no number") is None
    assert entity_key(TERMINALS, str(1 << 70)) is None
    assert field_of("v", "f") != field_of("v", "g")
    assert len(field_of("v", "f")) == 4


def test_values_stand_where_feast_has_them_and_nowhere_else(server):
    client = server.client()
    client.flushall()
    risk = b"\x29" + struct.pack("<d", 0.25)
    client.hset(entity_key(TERMINALS, "7") + b"payments", field_of("terminal_stats", "risk_7d"), risk)
    card = entity_key(CUSTOMERS, "kim") + b"payments"
    client.hset(card, field_of("card_stats", "n_day"), b"\x20\x05")
    client.hset(card, field_of("card_stats", "avg_day"), b"\x35" + struct.pack("<f", 12.5))
    rows = np.full((3, len(FEATURES)), 9, np.float32)
    source = opened(server)
    source.read(BATCH).put_into(rows)
    source.close()
    columns = [FEATURES.index(name) for name in ("terminal_risk_7d", "customer_count_24h", "customer_average_24h")]
    assert rows[:, columns].tolist() == [[0.25, 5, 12.5], [0.25, 9, 9], [9, 5, 12.5]]
    assert (np.delete(rows, columns, axis=1) == 9).all()


def test_a_store_that_is_down_is_left_alone_and_used_again(tmp_path):
    server = RedisServer(tmp_path / "redis").start()
    source = opened(server)
    assert source.read(BATCH) is not None
    server.kill()
    assert [source.read(BATCH) for _ in range(4)] == [None] * 4
    server.start()
    source._breaker._open_until_ns = 0
    assert source.read(BATCH) is not None
    source.close()
    server.kill()


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_integers_are_read_as_protobuf_writes_them(number):
    left, data = number & ((1 << 64) - 1), b""
    while left > 127:
        data, left = data + bytes([left & 127 | 128]), left >> 7
    assert number_of(b"\x20" + data + bytes([left])) == float(number)


@given(st.binary(max_size=20))
def test_anything_is_a_number_or_nothing(value):
    found = number_of(value)
    assert isinstance(found, float)


@pytest.mark.parametrize("value", [None, b"", b"\x12\x03abc", b"\x29\x00", b"\x20\x80", b"\x5a\x00"])
def test_text_lists_and_torn_values_are_nothing(value):
    assert math.isnan(number_of(value))
