"""Request ids and trace contexts: unique, and safe to echo into a header or a log."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.deadline import Deadline
from serve.context import DEFAULT_TENANT, EVERYONE, RequestContext, RequestIds, is_request_id, is_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def test_ids_are_unique_over_threads():
    ids = RequestIds()
    with ThreadPoolExecutor(8) as pool:
        made = [one for part in pool.map(lambda _: [ids.make() for _ in range(2_000)], range(8)) for one in part]
    assert len(set(made)) == 16_000


def test_an_id_is_32_hexadecimal_digits_that_may_be_echoed():
    made = RequestIds().make()
    assert len(made) == 32
    assert set(made) <= set("0123456789abcdef")
    assert is_request_id(made)


def test_two_processes_do_not_share_a_prefix():
    assert RequestIds().make()[:16] != RequestIds().make()[:16]
    assert RequestIds(b"12345678").make() == b"12345678".hex() + "0" * 15 + "1"


@pytest.mark.parametrize("text", ["a", "x" * 128, "req-1/2:3", "~!@#$%^&*()"])
def test_a_visible_ascii_id_may_be_echoed(text):
    assert is_request_id(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 129, "a b", "a\r\nset-cookie: x", "a\n", "\x00", "\x7f", "\t", "é", "１", "\u2028", "\ud800"]
)
def test_an_id_that_could_break_a_header_or_a_log_is_not_echoed(text):
    assert not is_request_id(text)


@given(st.text())
def test_whatever_is_echoed_is_one_header_value(text):
    if is_request_id(text):
        assert len(text.encode("latin-1")) == len(text) <= 128
        assert len(text.split()) == 1


@pytest.mark.parametrize("flags", ["00", "01", "ff"])
@pytest.mark.parametrize("version", ["00", "01", "cc"])
def test_a_well_formed_traceparent_is_taken(version, flags):
    assert is_traceparent(f"{version}-{TRACE}-{PARENT}-{flags}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0",
        f"00-{TRACE}-{PARENT}-001",
        f"00-{TRACE}-{PARENT}-01-extra",
        f"00_{TRACE}-{PARENT}-01",
        f"00-{TRACE}_{PARENT}-01",
        f"00-{TRACE}-{PARENT}_01",
        f"0g-{TRACE}-{PARENT}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00-{TRACE}-{PARENT[:-1]}-01-",
        f"00-{TRACE}-{PARENT}-0１",
        f" 00-{TRACE}-{PARENT}-01",
    ],
)
def test_a_malformed_traceparent_is_not_taken(text):
    assert not is_traceparent(text)


hexadecimal = st.text("0123456789abcdefABCDEFg-", min_size=0, max_size=40)


@given(st.one_of(st.text(max_size=60), st.builds("-".join, st.lists(hexadecimal, min_size=4, max_size=4))))
def test_whatever_is_taken_has_the_four_fields_of_the_standard(text):
    if is_traceparent(text):
        version, trace, parent, flags = text.split("-")
        assert [len(version), len(trace), len(parent), len(flags)] == [2, 32, 16, 2]
        assert int(version, 16) < 255
        assert int(trace, 16) > 0
        assert int(parent, 16) > 0
        assert text == text.lower()


def test_a_request_is_anybodys_until_somebody_says_otherwise():
    context = RequestContext("id", Deadline(1), 0)
    assert (context.tenant, context.principal, context.priority, context.cancelled) == (
        DEFAULT_TENANT,
        EVERYONE,
        0,
        False,
    )
