"""The fraud pipeline as an OIP model: rows to transactions and decisions back to columns."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.backends.base import Tensor
from serve.errors import DeadlineExceeded, InvalidInput
from serve.ingress.wire.fraud_oip import FraudEndpoint, pipeline_spec
from serve.pipelines.fraud.contract import Transaction
from serve.pipelines.infer.contract import InferRequest
from tests.unit.ingress.wire.fraud_cases import BAD_VALUES, DECISION, FULL, GOOD, assert_is_useful

ENDPOINT = FraudEndpoint("3")


def column(values: list[Any]) -> Tensor:
    if isinstance(values[0], bytes):
        tensor = np.empty((len(values), 1), dtype=np.object_)
        tensor[:, 0] = values
        return tensor
    return np.array(values, dtype=np.float64).reshape(-1, 1)


def request(*rows: dict[str, Any]) -> InferRequest:
    """One tensor per field of the first row; text as UTF-8 unless it is bytes already."""
    encoded = [{name: v.encode() if isinstance(v, str) else v for name, v in row.items()} for row in rows]
    inputs = {name: column([row[name] for row in encoded]) for name in encoded[0]}
    return InferRequest(inputs, (), batch_size=len(rows))


@pytest.mark.parametrize("fields", [GOOD, FULL])
def test_a_row_comes_out_as_it_was_sent(fields):
    [transaction] = ENDPOINT.items(request(fields))
    assert transaction == Transaction(**{name: fields.get(name) for name in FULL})


def test_each_row_is_its_own_transaction_or_error():
    items = ENDPOINT.items(request(GOOD, {**GOOD, "amount": -1.0}, {**GOOD, "customer_id": ""}, GOOD))
    assert [isinstance(item, Transaction) for item in items] == [True, False, False, True]
    assert_is_useful(items[1], "row 1.amount")
    assert_is_useful(items[2], "row 2.customer_id")


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=[f"{n}={str(v)[:12]!r}" for n, v in BAD_VALUES])
def test_a_value_out_of_range_is_named_and_what_is_allowed_said(name, value):
    [error] = ENDPOINT.items(request({**FULL, name: value}))
    assert_is_useful(error, f"row 0.{name}")


@pytest.mark.parametrize("name", ["amount", "timestamp", "latitude", "longitude"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_number_that_is_none_is_named(name, value):
    [error] = ENDPOINT.items(request({**FULL, name: value}))
    assert_is_useful(error, f"row 0.{name}")


@pytest.mark.parametrize("name", ["transaction_id", "customer_id", "terminal_id", "channel"])
def test_text_that_is_no_utf_8_is_that_rows_error(name):
    """Read with replacement characters, two different transaction ids would be one, and share a decision."""
    items = ENDPOINT.items(request({**FULL, name: b"a\xff"}, {**FULL, name: b"ab"}))
    assert_is_useful(items[0], f"row 0.{name}")
    assert isinstance(items[1], Transaction)


texts = st.binary(max_size=100) | st.text(max_size=97).map(str.encode)


@given(
    st.lists(
        st.fixed_dictionaries(
            dict.fromkeys(("transaction_id", "customer_id", "terminal_id", "currency", "channel"), texts)
            | {name: st.floats() for name in ("amount", "timestamp", "latitude")}
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_rows_are_transactions_or_errors_in_their_places(rows):
    items = ENDPOINT.items(request(*rows))
    assert len(items) == len(rows)
    for i, item in enumerate(items):
        if not isinstance(item, Transaction):
            assert_is_useful(item)
            assert item.field is not None
            assert item.field.startswith(f"row {i}.")


def test_the_answer_has_a_column_per_field_and_an_errors_row_is_empty_but_for_it():
    error = InvalidInput("bad", field="row 1.amount")
    response = ENDPOINT.response(request(GOOD, GOOD, GOOD), [DECISION, error, DeadlineExceeded("late")])
    outputs = response.outputs
    assert (response.model_name, response.model_version) == ("fraud", "3")
    assert outputs["fraud_probability"][:, 0].tolist()[0] == 0.75
    assert np.isnan(outputs["fraud_probability"][1:, 0]).all()
    assert outputs["decision"][:, 0].tolist() == [b"decline", b"", b""]
    assert json.loads(outputs["scores"][0, 0]) == {"m": 0.75}
    assert json.loads(outputs["reasons"][0, 0])[0]["feature"] == "amount"
    assert json.loads(outputs["degraded"][0, 0]) == ["reasons"]
    assert outputs["error"][0, 0] == b""
    assert json.loads(outputs["error"][1, 0]) == {"kind": "invalid_input", "message": "bad", "field": "row 1.amount"}
    assert json.loads(outputs["error"][2, 0])["kind"] == "deadline_exceeded"


def test_the_answer_is_what_the_metadata_promises():
    spec = pipeline_spec("3")
    response = ENDPOINT.response(request(GOOD), [DECISION])
    assert set(response.outputs) == {output.name for output in spec.outputs}
    for output in spec.outputs:
        tensor = response.outputs[output.name]
        assert tensor.shape == (1, 1)
        assert tensor.dtype == (np.float64 if output.datatype == "FP64" else np.object_)


def test_an_id_that_ends_with_a_zero_byte_comes_back_whole():
    decision = msgspec.structs.replace(DECISION, transaction_id="a\0")
    assert ENDPOINT.response(request(GOOD), [decision]).outputs["transaction_id"][0, 0] == b"a\0"


def test_the_metadata_asks_for_exactly_the_fields_of_a_transaction():
    spec = pipeline_spec("3")
    assert spec.platform == "ensemble"
    assert {tensor.name for tensor in spec.inputs} == set(Transaction.__struct_fields__)
    required = {tensor.name for tensor in spec.inputs if not tensor.is_optional}
    assert required == set(GOOD)
