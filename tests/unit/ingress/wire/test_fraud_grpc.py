"""Fraud over gRPC: whatever the bytes, the answer is the transactions or an InvalidInput that names the field."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from serve.errors import DeadlineExceeded, HeadroomError, InvalidInput
from serve.ingress.wire import fraud_grpc
from serve.ingress.wire.fraud_http import MAX_TRANSACTIONS
from serve.pipelines.fraud.contract import Transaction
from tests.unit.ingress.wire.fraud_cases import BAD_VALUES, DECISION, FULL, GOOD, assert_is_useful, outcome_of, without

ONE, MANY, STREAM = fraud_grpc.ScoreCodec(), fraud_grpc.ScoreBatchCodec(), fraud_grpc.ScoreStreamCodec()


def one(**fields) -> bytes:
    return pb.ScoreRequest(transaction=pb.Transaction(**fields)).SerializeToString()


def many(*transactions) -> bytes:
    return pb.ScoreBatchRequest(transactions=[pb.Transaction(**t) for t in transactions]).SerializeToString()


def refused(payload: bytes) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        ONE.decode(payload)
    assert_is_useful(error.value)
    return error.value


@pytest.mark.parametrize("fields", [GOOD, FULL])
def test_a_transaction_comes_out_as_it_was_sent(fields):
    decoded = ONE.decode(one(**fields))
    [transaction] = decoded.items
    assert transaction == Transaction(**{name: fields.get(name) for name in FULL})
    assert decoded.request == "t1"


@pytest.mark.parametrize("name", list(GOOD))
def test_a_field_left_out_is_named_because_its_default_is_not_allowed(name):
    if name == "amount":
        assert ONE.decode(one(**without("amount"))).items[0].amount == 0  # proto3 cannot tell 0 from nothing
    else:
        assert_is_useful(refused(one(**without(name))), f"transaction.{name}")


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=[f"{n}={str(v)[:12]!r}" for n, v in BAD_VALUES])
def test_a_value_out_of_range_is_named_and_what_is_allowed_said(name, value):
    assert_is_useful(refused(one(**{**FULL, name: value})), f"transaction.{name}")


@pytest.mark.parametrize("name", ["amount", "timestamp", "latitude", "longitude"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_number_that_is_none_is_named(name, value):
    assert_is_useful(refused(one(**{**FULL, name: value})), f"transaction.{name}")


def test_an_empty_message_is_refused_by_its_first_field():
    assert refused(b"").field == "transaction.transaction_id"


def test_fields_of_a_newer_client_are_ignored():
    assert ONE.decode(one(**GOOD) + b"\xfa\x01\x03new").items


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\xff", b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xff\xfe"], ids=repr)
def test_bytes_that_are_no_message_are_refused(payload):
    assert "headroom.fraud.v1.ScoreRequest" in refused(payload).message


@given(st.binary(max_size=120))
def test_any_bytes_are_transactions_or_an_invalid_input(payload):
    for codec in (ONE, STREAM, MANY):
        assert codec.count_items(payload) >= 1
        assert codec.timeout_us(payload) is None
        outcome = outcome_of(codec.decode, payload)
        if isinstance(outcome, InvalidInput):
            assert_is_useful(outcome)
        else:
            assert all(isinstance(item, Transaction | InvalidInput) for item in outcome)


@given(
    st.fixed_dictionaries(
        {name: st.text(max_size=100) for name in ("transaction_id", "customer_id", "terminal_id")}
        | {name: st.floats() for name in ("amount", "timestamp")},
        optional={name: st.text(max_size=40) for name in ("currency", "merchant_category", "channel")}
        | {name: st.floats() for name in ("latitude", "longitude")},
    )
)
def test_any_fields_are_a_usable_transaction_or_an_invalid_input(fields):
    outcome = outcome_of(ONE.decode, one(**fields))
    if isinstance(outcome, InvalidInput):
        assert_is_useful(outcome)
        assert outcome.field is not None
    else:
        assert isinstance(outcome[0].event_s, int)
        assert 0 <= outcome[0].amount <= 1e9


def test_the_answer_is_the_decision_as_a_message():
    response = pb.ScoreResponse.FromString(ONE.encode("t1", [DECISION]).body)
    assert response.transaction_id == "t1"
    assert response.fraud_probability == 0.75
    assert response.decision == pb.DECISION_KIND_DECLINE
    assert response.risk_level == "critical"
    assert dict(response.scores) == {"m": 0.75}
    assert list(response.degraded) == ["reasons"]
    assert response.model_version == "m:1"
    assert response.reasons[0].feature == "amount"
    assert math.isnan(response.reasons[0].value)  # not known, and 0 would be a value


def test_every_kind_of_decision_has_a_number_that_is_not_unspecified():
    numbers = {fraud_grpc._KINDS[kind] for kind in ("approve", "review", "decline")}
    assert len(numbers) == 3
    assert pb.DECISION_KIND_UNSPECIFIED not in numbers


def test_a_single_items_error_is_the_calls_error():
    with pytest.raises(DeadlineExceeded):
        ONE.encode("t1", [DeadlineExceeded("late")])


def test_in_a_batch_each_item_is_its_own_transaction_or_error_and_keeps_its_id():
    decoded = MANY.decode(many(GOOD, {**GOOD, "transaction_id": "t2", "amount": -1}, FULL))
    assert [isinstance(item, Transaction) for item in decoded.items] == [True, False, True]
    assert_is_useful(decoded.items[1], "transactions[1].amount")
    outcomes = [DECISION, decoded.items[1], DeadlineExceeded("late")]
    results = pb.ScoreBatchResponse.FromString(MANY.encode(decoded.request, outcomes).body).results
    assert [result.transaction_id for result in results] == ["t1", "t2", "t1"]
    assert [result.WhichOneof("result") for result in results] == ["response", "error", "error"]
    assert (results[1].error.kind, results[1].error.field) == ("invalid_input", "transactions[1].amount")
    assert (results[2].error.kind, results[2].error.message, results[2].error.field) == (
        "deadline_exceeded",
        "late",
        "",
    )


@pytest.mark.parametrize("num_items", [0, MAX_TRANSACTIONS + 1])
def test_a_batch_of_none_or_too_many_is_refused_with_the_number_and_what_is_allowed(num_items):
    with pytest.raises(InvalidInput) as error:
        MANY.decode(many(*[GOOD] * num_items))
    assert error.value.field == "transactions"
    assert f"has {num_items} items" in error.value.message
    assert str(MAX_TRANSACTIONS) in error.value.message


def test_a_message_counts_as_no_more_items_than_are_allowed():
    assert MANY.count_items(b"\x00" * 1_000_000) <= MAX_TRANSACTIONS + 1


@pytest.mark.parametrize("num_items", [1, 10, 500])
def test_the_estimated_number_of_items_is_near_the_true_one(num_items):
    realistic = {**GOOD, "transaction_id": "a" * 20, "customer_id": "c" * 8, "terminal_id": "m" * 8}
    assert num_items / 2 <= MANY.count_items(many(*[realistic] * num_items)) <= num_items * 2


def test_on_a_stream_an_error_is_a_message_that_names_its_transaction():
    result = pb.ScoreResult.FromString(STREAM.encode("t1", [DECISION]).body)
    assert (result.transaction_id, result.response.decision) == ("t1", pb.DECISION_KIND_DECLINE)
    result = pb.ScoreResult.FromString(STREAM.encode("t1", [InvalidInput("bad", field="x")]).body)
    assert (result.transaction_id, result.error.field) == ("t1", "transaction.x")
    result = pb.ScoreResult.FromString(STREAM.encode_error(one(**GOOD), DeadlineExceeded("late")).body)
    assert (result.transaction_id, result.error.kind) == ("t1", "deadline_exceeded")


@given(st.binary(max_size=60))
def test_any_message_of_a_stream_can_be_answered_with_an_error(payload):
    result = pb.ScoreResult.FromString(STREAM.encode_error(payload, InvalidInput("bad")).body)
    assert result.error.message == "bad"


def test_every_refusal_is_known():
    for payload in (b"\xff", b"", one(**{**GOOD, "amount": -1})):
        with pytest.raises(HeadroomError):
            ONE.decode(payload)
