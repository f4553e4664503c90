from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NotRequired, get_origin, get_type_hints

import pytest
from headroom_client import InvalidInput, Transaction
from headroom_client.fraud import TransactionFields


def make(**changes: Any) -> Transaction:
    fields = {"transaction_id": "t", "customer_id": "c", "terminal_id": "m", "amount": 1.0, "timestamp": 0.0}
    return Transaction(**fields | changes)


def test_a_datetime_and_its_seconds_are_the_same_moment() -> None:
    moment = datetime(2024, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    assert make(timestamp=moment).timestamp_s == datetime(2024, 5, 1, 10, 0, tzinfo=UTC).timestamp()
    assert make(timestamp=17).timestamp_s == 17


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(InvalidInput, match="without a time zone") as raised:
        make(timestamp=datetime(2024, 5, 1))
    assert raised.value.field == "timestamp"


@pytest.mark.parametrize("field", ["amount", "timestamp", "latitude", "longitude"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_carry_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{field} is .*; allowed: a finite number") as raised:
        make(**{field: value})
    assert (raised.value.field, raised.value.kind) == (field, "invalid_input")


def test_the_keyword_form_has_exactly_the_values_fields() -> None:
    names = [field.name for field in dataclasses.fields(Transaction)]
    assert list(TransactionFields.__annotations__) == names
    hints = get_type_hints(TransactionFields, include_extras=True)
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    assert optional == {f.name for f in dataclasses.fields(Transaction) if f.default is None}
