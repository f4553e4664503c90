"""The fraud pipeline's pure work: columns, thresholds, reasons in words, and the policy beside the model."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import NotReady
from serve.features.windows import FEATURES, Windows
from serve.pipelines.fraud.contract import MAX_FUTURE_S, RULES, Transaction
from serve.pipelines.fraud.policy import read_policy
from serve.pipelines.fraud.stages import (
    Policy,
    assemble_rows,
    average_rows,
    explain,
    reason_text,
    timestamp_error,
    to_events,
)
from tests.unit.pipelines.fraud.cases import AMOUNT, AVERAGES, NOW_S, POLICY, transaction

probabilities = st.floats(0, 1, width=32)


# Policy


@given(probabilities)
def test_a_higher_probability_is_never_called_a_lower_risk(probability):
    levels, kinds = ["low", "medium", "high", "critical"], ["approve", "review", "decline"]
    higher = min(1.0, probability + 0.1)
    assert levels.index(POLICY.risk_level(probability)) <= levels.index(POLICY.risk_level(higher))
    assert kinds.index(POLICY.decision(probability)) <= kinds.index(POLICY.decision(higher))


@pytest.mark.parametrize(
    ("probability", "kind", "level"),
    [
        (0.0, "approve", "low"),
        (0.2, "approve", "medium"),
        (0.3, "review", "medium"),
        (0.5, "review", "high"),
        (0.7, "decline", "high"),
        (0.9, "decline", "critical"),
        (1.0, "decline", "critical"),
    ],
)
def test_a_threshold_belongs_to_what_begins_at_it(probability, kind, level):
    assert (POLICY.decision(probability), POLICY.risk_level(probability)) == (kind, level)


# Times


@pytest.mark.parametrize(("ahead_s", "is_fine"), [(-(10**8), True), (0, True), (MAX_FUTURE_S, True), (86_401, False)])
def test_a_time_is_too_far_ahead_after_a_day(ahead_s, is_fine):
    assert (timestamp_error(transaction(), NOW_S + ahead_s, NOW_S) is None) is is_fine


@given(st.datetimes(min_value=datetime(2000, 1, 2), max_value=datetime(2100, 1, 1)), st.integers(-23, 23))
def test_a_time_is_the_same_second_in_every_zone(when, offset_h):
    zone = timezone(timedelta(hours=offset_h))
    aware = when.replace(tzinfo=UTC)
    seconds = [
        transaction(timestamp=stamp).event_s for stamp in (when, aware, aware.astimezone(zone), aware.timestamp())
    ]
    assert len(set(seconds)) == 1


@pytest.mark.parametrize("text", ["1999-12-31T23:59:59+00:00", "1960-01-01T00:00:00", "0001-01-01T00:00:00+00:00"])
def test_a_time_written_as_a_date_is_held_to_the_same_start_as_a_number(text):
    """Windows take no negative time: it would fail as a bug of ours."""
    early = transaction(timestamp=datetime.fromisoformat(text))
    error = timestamp_error(early, early.event_s, NOW_S)
    assert error is not None
    assert error.field == "timestamp"
    assert RULES["timestamp"] in error.message


# Columns


def test_columns_are_in_the_transactions_order():
    events = to_events([transaction("a", 1.5), transaction("b", 0, customer_id="c9")], [5, 6])
    assert (events.transaction_ids, events.customer_ids) == (["a", "b"], ["c1", "c9"])
    assert events.event_s.tolist() == [5, 6]
    assert events.amount_e4.tolist() == [15_000, 0]
    assert events.amount_e4.dtype == np.int64


def test_an_unknown_customers_row_has_the_transactions_own_columns():
    events = to_events([transaction("a", 12.5)], [NOW_S])
    unknown = Windows.unknown(1)
    [row] = assemble_rows(events, unknown, unknown)
    assert row.dtype == np.float32
    assert row[AMOUNT] == 12.5
    assert row[FEATURES.index("hour_of_day")] == datetime.fromtimestamp(NOW_S, UTC).hour
    assert math.isnan(row[FEATURES.index("customer_average_7d")])
    assert row[FEATURES.index("customer_count_30d")] == 0


def test_rows_of_averages_keep_the_transactions_own_columns_and_never_share_memory_with_the_policy():
    before = AVERAGES.copy()
    rows = average_rows(to_events([transaction("a", 12.5), transaction("b", 7)], [NOW_S, NOW_S]), POLICY)
    assert rows[:, AMOUNT].tolist() == [12.5, 7]
    assert rows[1, -1] == AVERAGES[-1]
    rows[:] = 0
    assert np.array_equal(AVERAGES, before)


def test_an_amount_is_compared_with_the_average_that_stands_in_for_the_customers_own():
    """An average ratio would call every amount usual."""
    usual, tenfold = average_rows(to_events([transaction("a", 50), transaction("b", 500)], [NOW_S, NOW_S]), POLICY)
    for level in ("7d", "30d"):
        ratio, average = FEATURES.index(f"amount_over_customer_average_{level}"), f"customer_average_{level}"
        assert usual[ratio] == pytest.approx(50 / AVERAGES[FEATURES.index(average)])
        assert tenfold[ratio] == pytest.approx(10 * usual[ratio])


# Reasons


def test_reasons_are_the_features_that_raised_the_score_most_largest_first():
    contributions = np.linspace(-1, 1, len(FEATURES) + 1, dtype=np.float32)
    contributions[-1] = 99  # the expected value is no feature
    found = explain(np.ones(len(FEATURES), np.float32), contributions, 0.0).reasons
    assert [reason.feature for reason in found] == list(FEATURES[::-1][:4])
    assert [reason.contribution for reason in found] == sorted((r.contribution for r in found), reverse=True)


def test_reasons_about_somebody_new_say_that_it_is_no_history_of_theirs():
    contributions = np.zeros(len(FEATURES) + 1, np.float32)
    names = ("customer_average_7d", "amount_over_terminal_average_30d", "amount", "is_new_terminal")
    contributions[[FEATURES.index(name) for name in names]] = (4, 3, 2, 1)
    row = np.ones(len(FEATURES), np.float32)
    known, card_new, both_new = (
        [reason.text for reason in explain(row, contributions, 0.0, unknown).reasons]
        for unknown in ((), ("customer",), ("customer", "terminal"))
    )
    assert ["group average" in text for text in known] == [False] * 4
    assert ["group average" in text for text in card_new] == [True, False, False, False]
    assert ["group average" in text for text in both_new] == [True, True, False, False]


def test_a_row_that_nothing_raised_has_no_reasons():
    contributions = np.zeros(len(FEATURES) + 1, np.float32)
    assert explain(np.ones(len(FEATURES), np.float32), contributions, 0.0).reasons == []
    assert explain(np.ones(len(FEATURES), np.float32), contributions - 1, 0.0).reasons == []


@given(st.lists(st.floats(-5, 5, width=32), min_size=len(FEATURES) + 1, max_size=len(FEATURES) + 1))
def test_reasons_are_at_most_four_and_each_raised_the_score(contributions):
    row = np.full(len(FEATURES), np.nan, np.float32)
    found = explain(row, np.array(contributions, np.float32), 0.0).reasons
    assert len(found) <= 4
    assert all(reason.contribution > 0 and reason.value is None for reason in found)


@pytest.mark.parametrize(
    ("feature", "value"),
    [(f, v) for f in FEATURES for v in (0.0, 1.0, 3.25, 1e9, math.nan) if "_count_" not in f or not math.isnan(v)],
)
def test_every_feature_has_words_and_none_of_them_is_nan(feature, value):
    text = reason_text(feature, value)
    assert text
    assert "nan" not in text
    assert "_" not in text


# Contract


def test_every_field_of_a_transaction_has_a_rule_in_words():
    assert set(RULES) == set(Transaction.__struct_fields__)


# The policy's file

GOOD = {
    "features": list(FEATURES),
    "review_at": 0.2,
    "decline_at": 0.4,
    "risk_levels": [0.1, 0.2, 0.4],
    "group_averages": [1.0] * len(FEATURES),
}


def written(folder, text):
    (folder / "policy.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


def test_a_policy_is_read_as_it_was_written(tmp_path):
    policy = read_policy(written(tmp_path, GOOD))
    assert isinstance(policy, Policy)
    assert (policy.review_at, policy.decline_at, policy.risk_levels) == (0.2, 0.4, (0.1, 0.2, 0.4))
    assert policy.group_averages.dtype == np.float32
    assert policy.group_averages.shape == (len(FEATURES),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        {**GOOD, "review_at": 1.5},
        {**GOOD, "review_at": "x"},
        {**GOOD, "risk_levels": [0.1, 0.2]},
        {**GOOD, "group_averages": None},
        {**GOOD, "features": list(FEATURES[::-1])},
        {**GOOD, "features": []},
        {**GOOD, "group_averages": [1.0] * (len(FEATURES) - 1)},
        {**GOOD, "group_averages": []},
        {**GOOD, "review_at": 0.5},
        {**GOOD, "risk_levels": [0.4, 0.2, 0.1]},
        {**GOOD, "features": "\udcff"},
    ],
    ids=["empty", "torn", "a list", "no keys", "over 1", "text", "two levels", "no averages", "order of features",
         "no features", "an average too few", "no average", "review after decline", "levels that fall", "not UTF-8"],
)  # fmt: skip
def test_a_policy_that_cannot_serve_is_refused_at_start_by_its_file(tmp_path, text):
    """A row of averages is first needed when the store is down: that is no time to find that one is missing."""
    if isinstance(text, dict) and text["features"] == "\udcff":
        (tmp_path / "policy.json").write_bytes(json.dumps(GOOD).encode().replace(b'"amount"', b'"\xff"', 1))
    else:
        written(tmp_path, text)
    with pytest.raises(NotReady) as refused:
        read_policy(tmp_path)
    assert str(tmp_path / "policy.json") in refused.value.message


def test_a_model_without_a_policy_cannot_serve_the_pipeline(tmp_path):
    with pytest.raises(NotReady, match=r"policy\.json"):
        read_policy(tmp_path)
