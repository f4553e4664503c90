"""Deadlines: the tightest of four sources, and what the timeout header may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.deadline import NS_PER_MS, Deadline, limited, parse_timeout_ms, tightest
from serve.errors import InvalidInput

NOW_NS = 5 * 10**12
optional_ms = st.none() | st.floats(0.001, 3_600_000)


@given(st.floats(0.001, 3_600_000), optional_ms, optional_ms, optional_ms)
def test_the_tightest_source_wins_whichever_it_is(budget_ms, header_ms, grpc_ms, oip_ms):
    grpc_s = None if grpc_ms is None else grpc_ms / 1e3
    deadline = tightest(NOW_NS, budget_ms, header_ms=header_ms, grpc_remaining_s=grpc_s)
    deadline = limited(deadline, NOW_NS, None if oip_ms is None else max(1, int(oip_ms * 1e3)))
    given_ms = [ms for ms in (budget_ms, header_ms, grpc_ms, oip_ms) if ms is not None]
    assert deadline.remaining_ms(NOW_NS) == pytest.approx(min(given_ms), abs=0.0011)
    assert deadline.remaining_ns(NOW_NS) <= budget_ms * NS_PER_MS


def test_each_source_alone_tightens_the_budget():
    assert tightest(NOW_NS, 50).at_ns == NOW_NS + 50 * NS_PER_MS
    assert tightest(NOW_NS, 50, header_ms=20).at_ns == NOW_NS + 20 * NS_PER_MS
    assert tightest(NOW_NS, 50, grpc_remaining_s=0.03).at_ns == NOW_NS + 30 * NS_PER_MS
    assert limited(tightest(NOW_NS, 50), NOW_NS, 40_000).at_ns == NOW_NS + 40 * NS_PER_MS


def test_no_source_loosens_the_budget():
    far = limited(tightest(NOW_NS, 50, header_ms=1e6, grpc_remaining_s=1e6), NOW_NS, 10**12)
    assert far == tightest(NOW_NS, 50)


def test_an_oip_timeout_of_zero_means_none():
    assert limited(tightest(NOW_NS, 50), NOW_NS, 0) == tightest(NOW_NS, 50)


def test_a_grpc_deadline_that_has_passed_leaves_nothing():
    assert tightest(NOW_NS, 50, grpc_remaining_s=-0.5).is_past(NOW_NS)
    assert tightest(NOW_NS, 50, grpc_remaining_s=0.0).is_past(NOW_NS)


def test_a_deadline_is_past_at_its_moment_and_not_before():
    deadline = Deadline(NOW_NS)
    assert not deadline.is_past(NOW_NS - 1)
    assert deadline.is_past(NOW_NS)
    assert deadline.remaining_ns(NOW_NS + 7) == -7
    assert deadline.remaining_ms(NOW_NS - 1_500_000) == 1.5


@given(st.floats(1e-3, 3_600_000))
def test_any_number_up_to_an_hour_is_read(timeout_ms):
    assert parse_timeout_ms(repr(timeout_ms)) == timeout_ms


BAD_TIMEOUTS = ["", " ", "0", "-1", "-0.0", "nan", "inf", "-inf", "Infinity", "1e999", "3600000.1", "ten", "0x10",
                "5ms", "1,5", "1_000", "5 5", "\x00", "1" * 5000]  # fmt: skip


@pytest.mark.parametrize("text", BAD_TIMEOUTS, ids=[repr(text)[:12] for text in BAD_TIMEOUTS])
def test_what_is_no_number_of_milliseconds_is_refused_with_header_value_and_what_is_allowed(text):
    with pytest.raises(InvalidInput) as refused:
        parse_timeout_ms(text)
    assert refused.value.field == "X-Request-Timeout-Ms"
    assert repr(text[:40]) in refused.value.message
    assert "3600000" in refused.value.message
    assert len(refused.value.message) < 250


@given(st.text())
def test_any_text_is_read_or_refused_by_name(text):
    try:
        timeout_ms = parse_timeout_ms(text)
    except InvalidInput:
        return
    assert 0 < timeout_ms <= 3_600_000
