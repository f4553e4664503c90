"""What is wrong with a JSON body is said by field, value and what is allowed, in a text that is safe to send."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from serve.ingress.wire.json_errors import explain
from tests.unit.ingress.wire.fraud_cases import assert_is_useful


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    size: Annotated[int, msgspec.Meta(ge=1)]


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: Inner | None = None
    rows: list[Inner] = []
    by_key: dict[str, int] = {}


RULES = {"name": "a string", "size": "a number over 0"}


def explained(body: bytes, base: str = ""):
    with pytest.raises(msgspec.DecodeError) as refused:
        msgspec.json.decode(body, type=Outer)
    return explain(refused.value, body, rules=RULES, base=base)


@pytest.mark.parametrize(
    ("body", "field", "shown"),
    [
        (b'{"name":5}', "name", "5"),
        (b'{"name":null}', "name", "null"),
        (b'{"name":{"a":[1]}}', "name", '{"a":[1]}'),
        (b'{"name":"n","inner":{"size":0}}', "inner.size", "0"),
        (b'{"name":"n","rows":[{"size":1},{"size":-3}]}', "rows[1].size", "-3"),
        (b'{"name":"n","rows":7}', "rows", "7"),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_shown(body, field, shown):
    error = explained(body)
    assert_is_useful(error)
    assert error.field == field
    assert f"{field} is {shown}; allowed: " in error.message


def test_what_is_allowed_comes_from_the_rules_and_else_from_the_type():
    assert explained(b'{"name":5}').message.endswith("allowed: a string")
    assert explained(b'{"name":"n","rows":7}').message.endswith("allowed: array")


@pytest.mark.parametrize(
    ("body", "field"),
    [(b"{}", "name"), (b'{"name":"n","inner":{}}', "inner.size"), (b'{"name":"n","rows":[{}]}', "rows[0].size")],
)
def test_a_missing_field_is_named_as_required(body, field):
    error = explained(body)
    assert error.field == field
    assert error.message == f"{field} is missing; it is required"


@pytest.mark.parametrize("name", ["x", "a.b", "a[0]", "a`b", "é", "", "name"])
def test_an_unknown_field_is_named_as_it_was_sent(name):
    error = explained(msgspec.json.encode({"name": "n", "inner": {"size": 1, f"un{name}": 1}}))
    assert_is_useful(error)
    assert error.field == f"inner.un{name}"
    assert "is not known; allowed: name, size" in error.message


def test_an_unknown_field_without_a_name_is_still_an_unknown_field():
    error = explained(b'{"name":"n","":1}')
    assert_is_useful(error)
    assert "is not known" in error.message


def test_a_path_gains_the_base_it_stands_below():
    assert explained(b'{"name":5}', "transactions[3]").field == "transactions[3].name"
    assert explained(b"{}", "row 0").field == "row 0.name"
    assert explained(b"[]", "row 0").field == "row 0"
    assert explained(b"{", "row 0").field == "row 0"


@pytest.mark.parametrize("body", [b"", b"{", b'{"name"', b"nul", b"NaN", b'{"name":"\\ud800"}', b"\x00", b"}"])
def test_what_is_no_json_is_called_that(body):
    error = explained(body)
    assert_is_useful(error)
    assert "not valid JSON" in error.message
    assert error.field is None


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"x"', b"true"])
def test_json_of_another_kind_names_the_body(body):
    error = explained(body)
    assert error.field is None
    assert error.message == f"the body is {body.decode()}; allowed: object"


@pytest.mark.parametrize(
    "body",
    [
        b'{"name":' + b"[" * 100_000,
        b'{"name":{"' + b"k" * 100_000 + b'":1}}',
        b'{"name":["' + b"v" * 100_000 + b'"]}',
        b'{"' + b"u" * 100_000 + b'":1}',
        b'{"name":"n","inner":{"' + b"u" * 100_000 + b'":1}}',
        b'{"name":1' + b"0" * 100_000 + b"}",
    ],
    ids=["deep value", "long key", "long value", "long unknown field", "long unknown inner field", "long number"],
)
def test_what_is_sent_back_is_bounded_whatever_was_sent(body):
    assert_is_useful(explained(body))


def test_a_wrong_value_under_a_key_of_the_clients_own_is_shown():
    error = explained(b'{"name":"n","by_key":{"a.b":"x"}}')
    assert_is_useful(error)
    assert '"x"' in error.message or "something else" in error.message
