"""Fraud over HTTP: whatever the body, the answer is the transactions or an InvalidInput that names the field."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import DeadlineExceeded, HeadroomError, InvalidInput
from serve.ingress.wire.fraud_http import MAX_TRANSACTIONS, ScoreBatchCodec, ScoreCodec
from serve.pipelines.fraud.contract import MAX_FUTURE_S, MIN_EVENT_S, Transaction
from serve.pipelines.fraud.stages import timestamp_error
from tests.unit.ingress.wire.fraud_cases import (
    BAD_VALUES,
    DECISION,
    FULL,
    GOOD,
    assert_is_useful,
    http,
    mangled,
    outcome_of,
    without,
)

ONE, MANY = ScoreCodec(), ScoreBatchCodec()
BODY = json.dumps(GOOD).encode()
DEEP = 200_000
YEAR_2100_S = 4_102_444_800


def refused(body) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        ONE.decode(http(body))
    assert_is_useful(error.value)
    return error.value


def items(body) -> list:
    return list(MANY.decode(http(body)).items)


def with_raw(name: str, raw: bytes) -> bytes:
    """The good transaction with one value replaced by bytes that json.dumps would not write."""
    return json.dumps({**GOOD, name: "@@"}).encode().replace(b'"@@"', raw)


def judged_time(text: str) -> InvalidInput | int:
    """What the codec, or else the pipeline's own check in the year 2100, says of a transaction of this time."""
    outcome = outcome_of(ONE.decode, http({**GOOD, "timestamp": text}))
    if isinstance(outcome, InvalidInput):
        return outcome
    return timestamp_error(outcome[0], outcome[0].event_s, YEAR_2100_S) or outcome[0].event_s


# One


@pytest.mark.parametrize("body", [GOOD, FULL, {**GOOD, "timestamp": 1_700_000_000.75}, {**GOOD, "amount": 0}])
def test_a_transaction_comes_out_as_it_was_sent(body):
    [transaction] = ONE.decode(http(body)).items
    for name, value in body.items():
        assert getattr(transaction, name) == value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T22:13:20", 1_700_000_000),
        ("2023-11-15T00:13:20+02:00", 1_700_000_000),
        ("2023-11-14T22:13:20.999Z", 1_700_000_000),
        ("2000-01-01T00:00:00Z", MIN_EVENT_S),
    ],
)
def test_a_time_may_be_rfc_3339_and_is_utc_without_an_offset(text, seconds):
    [transaction] = ONE.decode(http({**GOOD, "timestamp": text})).items
    assert transaction.event_s == seconds


@pytest.mark.parametrize(
    "text",
    ["1999-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "1960-01-01T00:00:00Z", "0001-01-01T00:00:00Z",
     "0001-01-01T00:00:00+23:59"],
)  # fmt: skip
def test_a_time_before_2000_is_refused_in_either_notation(text):
    """A negative one would fail the windows of its whole batch, and be answered as a bug of ours."""
    assert_is_useful(judged_time(text), "timestamp")


@pytest.mark.parametrize("text", ["", "yesterday", "2024-02-30T00:00:00Z", "2024-01-01", "1700000000", "T", "24:00"])
def test_a_time_that_is_no_rfc_3339_is_refused(text):
    error = refused({**GOOD, "timestamp": text})
    assert error.field == "timestamp"
    assert json.dumps(text) in error.message


@pytest.mark.parametrize("name", list(GOOD))
def test_a_missing_field_is_named(name):
    assert refused(without(name)).field == name


@pytest.mark.parametrize("name", ["x", "Amount", "transaction_ID", "amount "])
def test_an_unknown_field_is_named_beside_those_that_are_allowed(name):
    error = refused({**GOOD, name: 1})
    assert error.field == name
    assert "merchant_category" in error.message


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=[f"{n}={str(v)[:12]!r}" for n, v in BAD_VALUES])
def test_a_value_out_of_range_is_named_and_what_is_allowed_said(name, value):
    assert_is_useful(refused({**FULL, name: value}), name)


@pytest.mark.parametrize("name", list(FULL))
@pytest.mark.parametrize("value", [True, [], {}, [1], {"a": 1}], ids=str)
def test_a_value_of_another_type_is_named(name, value):
    assert_is_useful(refused({**FULL, name: value}), name)


@pytest.mark.parametrize("name", list(GOOD))
def test_null_is_no_value_of_a_required_field(name):
    assert_is_useful(refused({**GOOD, name: None}), name)


def test_null_is_no_value_at_all_of_an_optional_field():
    [transaction] = ONE.decode(http({**GOOD, "currency": None, "latitude": None})).items
    assert (transaction.currency, transaction.latitude) == (None, None)


@pytest.mark.parametrize("name", ["amount", "timestamp", "latitude"])
@pytest.mark.parametrize("raw", [b"NaN", b"Infinity", b"-Infinity", b"nan", b"+1", b"0x10", b".5", b"1e", b"01"])
def test_what_json_does_not_know_as_a_number_is_refused(name, raw):
    error = refused(with_raw(name, raw))
    assert "not valid JSON" in error.message or error.field == name


@pytest.mark.parametrize("name", ["amount", "timestamp", "latitude", "customer_id"])
@pytest.mark.parametrize("raw", [b"1e400", b"-1e400", b"1" + b"0" * 400, b"9" * 5000, b"-" + b"9" * 30], ids=repr)
def test_a_number_beyond_any_float_names_the_field(name, raw):
    assert refused(with_raw(name, raw)).field == name


@pytest.mark.parametrize("raw", [b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u12"', b'"\\x41"', b'"a\nb"', b'"abc'])
def test_a_malformed_string_is_no_json(raw):
    assert "not valid JSON" in refused(with_raw("customer_id", raw)).message


@pytest.mark.parametrize("raw", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"a\x80"], ids=repr)
@pytest.mark.parametrize("place", ["value", "key", "number"])
def test_bytes_that_are_no_utf_8_are_no_json(raw, place):
    body = {
        "value": with_raw("customer_id", b'"' + raw + b'"'),
        "key": BODY[:-1] + b',"' + raw + b'":1}',
        "number": with_raw("amount", raw),
    }[place]
    refused(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP,
        b'{"amount":' + b"[" * DEEP,
        b'{"amount":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"x":' + b'{"x":' * DEEP,
        with_raw("currency", b"[" * DEEP + b"]" * DEEP),
    ],
    ids=["arrays", "in a field", "closed in a field", "objects", "in an optional field"],
)
def test_nesting_without_end_is_refused(body):
    refused(body)


def test_of_a_repeated_key_the_last_stands():
    [transaction] = ONE.decode(http(BODY[:-1] + b',"amount":99}')).items
    assert transaction.amount == 99


@pytest.mark.parametrize("body", [b"", b" ", b"{", b"null", b"[]", b"{}", b'""', b"1", BODY + b"x", BODY + BODY])
def test_what_is_no_transaction_is_refused(body):
    refused(body)


def test_whitespace_around_the_body_is_allowed():
    assert ONE.decode(http(b"\r\n\t " + BODY + b" \n")).items


@given(st.binary(max_size=200))
def test_any_bytes_are_a_transaction_or_an_invalid_input(body):
    outcome = outcome_of(ONE.decode, http(body))
    if isinstance(outcome, InvalidInput):
        assert_is_useful(outcome)


@given(st.integers(0, len(BODY)), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_body_is_a_transaction_or_an_invalid_input(at, inserted, num_removed):
    outcome = outcome_of(ONE.decode, http(BODY[:at] + inserted + BODY[at + num_removed :]))
    if isinstance(outcome, InvalidInput):
        assert_is_useful(outcome)


@given(mangled)
def test_any_json_is_a_usable_transaction_or_an_invalid_input(value):
    outcome = outcome_of(ONE.decode, http(value))
    if isinstance(outcome, InvalidInput):
        assert_is_useful(outcome)
        assert outcome.field is not None or not isinstance(value, dict) or "not valid JSON" in outcome.message
    else:
        assert isinstance(outcome[0].event_s, int)


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_any_time_is_a_number_of_seconds_since_2000_or_an_invalid_input(when):
    outcome = judged_time(when.isoformat())
    if isinstance(outcome, InvalidInput):
        assert_is_useful(outcome, "timestamp")
    else:
        utc = when if when.tzinfo else when.replace(tzinfo=UTC)
        assert outcome == int((utc - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
        assert MIN_EVENT_S <= outcome <= YEAR_2100_S + MAX_FUTURE_S


def test_the_answer_is_the_decision_as_json():
    body = json.loads(ONE.encode(None, [DECISION]).body)
    assert body == msgspec.to_builtins(DECISION)
    assert body["reasons"][0]["value"] is None


def test_a_single_items_error_is_the_requests_error():
    with pytest.raises(DeadlineExceeded):
        ONE.encode(None, [DeadlineExceeded("late")])


# Many


def test_each_item_is_its_own_transaction_or_error():
    decoded = items({"transactions": [GOOD, {**GOOD, "amount": -1}, 5, FULL, without("amount")]})
    assert [isinstance(one, Transaction) for one in decoded] == [True, False, False, True, False]
    assert_is_useful(decoded[1], "transactions[1].amount")
    assert_is_useful(decoded[2], "transactions[2]")
    assert_is_useful(decoded[4], "transactions[4].amount")


@given(st.lists(mangled, min_size=1, max_size=4))
def test_any_json_items_are_transactions_or_errors_in_their_places(values):
    decoded = outcome_of(MANY.decode, http({"transactions": values}))
    if isinstance(decoded, InvalidInput):
        assert "not valid JSON" in decoded.message  # Python's json writes NaN
        return
    assert len(decoded) == len(values)
    for i, one in enumerate(decoded):
        if not isinstance(one, Transaction):
            assert_is_useful(one)
            assert one.field is not None
            assert one.field.startswith(f"transactions[{i}]")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_batch_or_an_invalid_input(body):
    for whole in (body, b'{"transactions":[' + body + b"]}"):
        decoded = outcome_of(MANY.decode, http(whole))
        if isinstance(decoded, InvalidInput):
            assert_is_useful(decoded)
        else:
            assert all(isinstance(one, Transaction | InvalidInput) for one in decoded)


@pytest.mark.parametrize(
    "body",
    [
        b'{"transactions":' + b"[" * DEEP,
        b'{"transactions":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"transactions":[' + b"[" * DEEP + b"]" * DEEP + b"]}",
        b'{"transactions":[{"amount":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
        b'{"transactions":[' + BODY + b',{"x":' + b'{"x":' * DEEP + b"1" + b"}" * DEEP + b"}]}",
    ],
    ids=["open", "closed", "an item", "in a field", "objects beside a good one"],
)
def test_nesting_without_end_in_a_batch_is_refused(body):
    decoded = outcome_of(MANY.decode, http(body))
    if isinstance(decoded, InvalidInput):
        assert_is_useful(decoded)
    else:
        assert any(isinstance(one, InvalidInput) for one in decoded)


@pytest.mark.parametrize("raw", [b'"\xff"', b"\xff", b'{"\xff":1}', with_raw("customer_id", b'"\xff"')], ids=repr)
def test_bytes_that_are_no_utf_8_in_a_batch_are_refused(raw):
    decoded = outcome_of(MANY.decode, http(b'{"transactions":[' + BODY + b"," + raw + b"]}"))
    assert_is_useful(decoded if isinstance(decoded, InvalidInput) else decoded[1])


@pytest.mark.parametrize("num_items", [0, MAX_TRANSACTIONS + 1, MAX_TRANSACTIONS * 3])
def test_a_batch_of_none_or_too_many_is_refused_with_the_number_and_what_is_allowed(num_items):
    with pytest.raises(InvalidInput) as error:
        items({"transactions": [GOOD] * num_items})
    assert error.value.field == "transactions"
    assert str(num_items) in error.value.message
    assert str(MAX_TRANSACTIONS) in error.value.message


def test_the_largest_batch_is_allowed():
    assert len(items({"transactions": [GOOD] * MAX_TRANSACTIONS})) == MAX_TRANSACTIONS


@pytest.mark.parametrize("body", [{}, {"transactions": 5}, {"transactions": {}}, {"transactions": None}, [], None, 5])
def test_a_list_that_is_none_is_refused(body):
    with pytest.raises(InvalidInput) as error:
        items(body)
    assert_is_useful(error.value)


def test_an_unknown_field_beside_the_list_is_named():
    with pytest.raises(InvalidInput) as error:
        items({"transactions": [GOOD], "x": 1})
    assert error.value.field == "x"


def test_the_answer_has_every_items_result_or_error_in_order():
    outcomes = [DECISION, InvalidInput("bad", field="transactions[1].amount"), DeadlineExceeded("late")]
    results = json.loads(MANY.encode(None, outcomes).body)["results"]
    assert results[0]["transaction_id"] == "t1"
    assert results[1] == {"error": {"kind": "invalid_input", "message": "bad", "field": "transactions[1].amount"}}
    assert results[2] == {"error": {"kind": "deadline_exceeded", "message": "late"}}


# At the edge


@pytest.mark.parametrize("num_items", [1, 2, 300])
def test_items_are_counted_before_decoding(num_items):
    assert MANY.count_items(http({"transactions": [GOOD] * num_items})) == num_items
    assert ONE.count_items(http(GOOD)) == 1


@given(st.binary(max_size=50))
def test_any_body_counts_as_at_least_one_item(body):
    assert MANY.count_items(http(body)) >= 1


def test_a_body_counts_as_no_more_items_than_are_allowed():
    """Else 5000 transactions are told to retry later (too many for the queue) and never learn that 1024 are allowed."""
    assert MANY.count_items(http(b'"transaction_id"' * 100_000)) <= MAX_TRANSACTIONS + 1


def test_the_body_carries_no_time_limit():
    assert (ONE.timeout_us(http(GOOD)), MANY.timeout_us(http(GOOD))) == (None, None)


def test_every_error_of_a_batch_is_known():
    for one in items({"transactions": [5, GOOD]}):
        assert isinstance(one, Transaction | HeadroomError)
