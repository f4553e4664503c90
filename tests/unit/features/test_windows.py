"""The windows' Python face: states in and out as bytes, amounts as integers, rows by name."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from kernels import profiles
from kernels import windows as kernel
from serve.features.windows import (
    FEATURES,
    PROFILE,
    Customers,
    Windows,
    advance,
    assemble,
    mark,
    terminal_number,
    to_ten_thousandths,
    warm_up,
)

NOW_S = 1_600_041_600


def rows(*pairs: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of (key, second, amount in ten-thousandths)."""
    keys, seconds, amounts = zip(*pairs, strict=True)
    return np.array(keys, np.int32), np.array(seconds, np.int64), np.array(amounts, np.int64)


def test_row_sees_its_keys_state_and_the_earlier_rows_of_its_batch_but_not_itself():
    first = advance([None], *rows((0, NOW_S, 100)))
    (state,) = first.new_states()
    second = advance([state, None], *rows((0, NOW_S + 30, 50), (1, NOW_S, 7), (0, NOW_S + 40, 1)))
    assert not first.windows.totals.any()
    assert second.windows.totals[:, :8].tolist() == [[1] * 4 + [100] * 4, [0] * 8, [2] * 4 + [150] * 4]
    assert not second.windows.totals[:, 8:].any()
    np.testing.assert_array_equal(second.windows.since_last_s, [30, np.nan, 10])


def test_windows_reach_back_as_far_as_their_buckets():
    past = rows((0, NOW_S - 29 * 86_400, 1), (0, NOW_S - 6 * 86_400, 10), (0, NOW_S - 7200, 100), (0, NOW_S - 60, 1000))
    (state,) = advance([None], *past).new_states()
    seen = advance([state], *rows((0, NOW_S, 0))).windows.totals[0]
    assert seen.tolist() == [1, 2, 3, 4, 1000, 1100, 1110, 1111, 0, 0, 1, 0, 0, 0]


def test_unknown_key_may_be_none_or_empty_and_states_may_be_views_of_a_store():
    batch = rows((0, NOW_S, 100), (1, NOW_S, 100), (2, NOW_S, 100))
    (state,) = advance([None], *rows((0, NOW_S - 60, 5))).new_states()
    seen = advance([None, b"", memoryview(state)], *batch)
    assert seen.windows.totals[:, 0].tolist() == [0, 0, 1]
    assert not seen.is_damaged.any()


@pytest.mark.parametrize("num_bytes", [1, 7, 13, 47])
def test_torn_states_are_damaged_even_if_they_add_up_to_whole_words(num_bytes):
    (state,) = advance([None], *rows((0, NOW_S, 5))).new_states()
    torn = [state[:num_bytes], state, state[: 16 - num_bytes % 8]]
    seen = advance(torn, *rows((0, NOW_S, 1), (1, NOW_S, 1), (2, NOW_S, 1)))
    assert seen.is_damaged.tolist() == [True, False, True]
    assert seen.windows.totals[:, 0].tolist() == [0, 1, 0]


def test_keys_without_rows_keep_their_states():
    (state,) = advance([None], *rows((0, NOW_S, 5))).new_states()
    seen = advance([state, None, state], *rows((2, NOW_S, 5)))
    assert seen.new_states()[:2] == [state, b""]


def test_empty_batch_gives_empty_columns():
    nothing = np.empty(0, np.int64)
    seen = advance([], nothing.astype(np.int32), nothing, nothing)
    assert seen.windows.totals.shape == (0, kernel.NUM_TOTALS)
    assert seen.windows.profile.shape == (0, len(PROFILE))
    assert seen.new_states() == []


def test_advancing_again_from_the_same_states_gives_the_same_states():
    batch = rows((0, NOW_S, 5), (0, NOW_S - 100, 6), (1, NOW_S, 7))
    states = advance([None, None], *batch).new_states()
    assert advance(states, *batch).new_states() == advance(states, *batch).new_states()
    assert advance(states, *batch).new_states() != states


def test_state_of_a_typical_card_is_under_three_kilobytes_and_no_state_exceeds_its_bound():
    rng = np.random.default_rng(3)
    most_words = kernel.HEADER_WORDS + 2 * sum(kernel.RETAINED_BUCKETS) + profiles.MAX_WORDS
    for num_events, num_terminals, most_bytes in [(60, 8, 2_700), (50_000, 1_000, 8 * most_words)]:
        event_s = NOW_S + np.sort(rng.integers(0, 31 * 86_400, num_events))
        keys = np.zeros(num_events, np.int32)
        customers = Customers(1, rng.integers(0, num_terminals, num_events), np.zeros((num_events, 2)))
        (state,) = advance([None], keys, event_s, np.full(num_events, 10_000), customers).new_states()
        assert len(state) <= most_bytes


def test_rows_of_different_lengths_are_refused():
    keys, seconds, amounts = rows((0, NOW_S, 5), (0, NOW_S, 5))
    with pytest.raises(ValueError, match="rows differ"):
        advance([None], keys, seconds[:1], amounts)


def test_amounts_become_ten_thousandths_rounded_half_to_even():
    amount = np.array([0.0, 1.0, 0.00005, 0.00015, 0.00025, 12.34, 0.1 + 0.2, 1e9, -2.5])
    assert amount[3] * 1e4 < 1.5  # not a tie: it is the float that is rounded, not its decimal text
    expected = [0, 10_000, 0, 1, 2, 123_400, 3_000, 10**13, -25_000]
    assert to_ten_thousandths(amount).tolist() == expected


def test_after_warm_up_no_form_of_the_columns_compiles_anything():
    warm_up()
    before = signatures()
    keys, seconds, amounts = rows((0, NOW_S, 5), (0, NOW_S, 5), (1, NOW_S, 5), (1, NOW_S, 5))
    read_only = np.frombuffer(seconds.tobytes(), np.int64)
    seen = advance([None, None], keys.astype(np.int64), read_only, amounts)
    advance(seen.new_states(), keys[::2], seconds[::2], amounts.astype(np.int32)[::2])
    windows = seen.windows.rows(0, 2)
    assemble(amounts[:2], read_only[:2], windows, windows, np.empty((2, len(FEATURES)), np.float32))
    by_column = Customers(1, np.arange(4, dtype=np.int32), np.zeros((2, 4)).T)
    with_places = advance([None, None], keys, seconds, amounts, by_column)
    for state in with_places.new_states():
        mark(memoryview(state), int(seconds[0]), is_fraud=False)
    unknown = Windows.unknown(2)
    assemble(
        amounts[:2], seconds[:2], with_places.windows.rows(2, 4), unknown, np.empty((2, len(FEATURES)), np.float32)
    )
    assert signatures() == before


def signatures() -> list[object]:
    return [one for function in (kernel.advance, kernel.assemble, kernel.mark) for one in function.signatures]


def one_row(amount: float, event_s: int, customer: Windows, terminal: Windows) -> dict[str, float]:
    out = np.empty((1, len(FEATURES)), np.float32)
    assemble(to_ten_thousandths(np.array([amount])), np.array([event_s]), customer, terminal, out)
    return dict(zip(FEATURES, out[0].tolist(), strict=True))


def seen_windows(totals: list[int], since_last_s: float, profile: tuple[float, ...] = (math.nan,) * 4) -> Windows:
    totals = totals + [0] * (kernel.NUM_TOTALS - len(totals))
    return Windows(np.array([totals], np.int64), np.array([since_last_s]), np.array([profile]), np.array([False]))


def test_every_feature_stands_under_its_name():
    saturday_night_s = int(datetime(2026, 11, 21, 3, 59, tzinfo=UTC).timestamp())
    customer = seen_windows([0, 1, 4, 5, 0, 100_000, 800_000, 2_000_000], 61.0, (7.0, 1.0, 3.5, 90.0))
    terminal = seen_windows([1, 2, 3, 8, 30_000, 20_000, 60_000, 400_000, 0, 4, 10, 0, 1, 5], 5.0)
    assert one_row(20.0, saturday_night_s, customer, terminal) == pytest.approx(
        {
            "amount": 20.0,
            "hour_of_day": 3.0,
            "is_night": 1.0,
            "is_weekend": 1.0,
            "customer_count_1h": 0.0,
            "customer_count_24h": 1.0,
            "customer_count_7d": 4.0,
            "customer_count_30d": 5.0,
            "customer_average_1h": math.nan,
            "customer_average_24h": 10.0,
            "customer_average_7d": 20.0,
            "customer_average_30d": 40.0,
            "terminal_count_1h": 1.0,
            "terminal_count_24h": 2.0,
            "terminal_count_7d": 3.0,
            "terminal_count_30d": 8.0,
            "terminal_average_1h": 3.0,
            "terminal_average_24h": 1.0,
            "terminal_average_7d": 2.0,
            "terminal_average_30d": 5.0,
            "amount_over_customer_average_7d": 1.0,
            "amount_over_customer_average_30d": 0.5,
            "amount_over_terminal_average_30d": 4.0,
            "customer_seconds_since_last": 61.0,
            "terminal_seconds_since_last": 5.0,
            "terminal_risk_1d": math.nan,
            "terminal_risk_7d": 0.25,
            "terminal_risk_30d": 0.5,
            "terminal_frauds_1d": 0.0,
            "terminal_frauds_7d": 1.0,
            "terminal_frauds_30d": 5.0,
            "customer_terminals_7d": 7.0,
            "is_new_terminal": 1.0,
        },
        nan_ok=True,
    )


@pytest.mark.parametrize(
    ("when", "is_night", "is_weekend"),
    [
        (datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC), False, False),
        (datetime(2026, 11, 21, 0, 0, 0, tzinfo=UTC), True, True),
        (datetime(2026, 11, 22, 6, 0, 0, tzinfo=UTC), False, True),
        (datetime(2026, 11, 23, 5, 59, 59, tzinfo=UTC), True, False),
    ],
)
def test_nights_end_at_six_and_weekends_are_saturday_and_sunday_in_utc(when, is_night, is_weekend):
    unknown = Windows.unknown(1)
    row = one_row(1.0, int(when.timestamp()), unknown, unknown)
    assert (row["is_night"], row["is_weekend"], row["hour_of_day"]) == (is_night, is_weekend, when.hour)


def test_unknown_customer_and_terminal_leave_nan_where_nothing_can_be_said():
    unknown = Windows.unknown(1)
    row = one_row(1.0, NOW_S, unknown, unknown)
    is_nan = {name for name, value in row.items() if math.isnan(value)}
    assert is_nan == {
        *(name for name in FEATURES if "average" in name or "since_last" in name or "risk" in name),
        "customer_terminals_7d", "is_new_terminal",
    }  # fmt: skip


def test_profile_is_seen_of_customers_and_of_nobody_else():
    customers = Customers(1, np.array([terminal_number("t")]), np.array([[52.5, 13.4]]))
    batch = rows((0, NOW_S, 5), (1, NOW_S, 5))
    first = advance([None, None], *batch, customers)
    np.testing.assert_array_equal(first.windows.profile, [[0, 1, np.nan, np.nan], [np.nan] * 4])
    second = advance(first.new_states(), *batch, customers)
    np.testing.assert_array_equal(second.windows.profile, [[1, 0, 0, 0], [np.nan] * 4])


def test_label_and_its_taking_back_move_the_frauds_of_a_terminal_seven_days_later():
    (state,) = advance([None], *rows((0, NOW_S, 5), (0, NOW_S + 60, 5))).new_states()
    probe = rows((0, NOW_S + 7 * 86_400, 5))
    fraud = mark(memoryview(state), NOW_S, is_fraud=True)
    assert advance([fraud], *probe).windows.totals[0, 8:].tolist() == [2, 2, 2, 1, 1, 1]
    assert mark(fraud, NOW_S, is_fraud=False) == state


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 13, 47, 56])
def test_marked_torn_state_stays_damaged(num_bytes):
    (state,) = advance([None], *rows((0, NOW_S, 5))).new_states()
    seen = advance([mark(state[:num_bytes], NOW_S, is_fraud=True)], *rows((0, NOW_S, 5)))
    assert seen.is_damaged.all() == (num_bytes > 0)
    assert not seen.windows.totals.any()


def test_terminals_number_is_the_same_in_every_process_and_fits_in_32_bits():
    assert terminal_number("terminal-1") == 3_029_491_198
    assert all(0 <= terminal_number(name) < 1 << 32 for name in ("", "\U0001f4b3" * 96, "a\0b"))


def test_averages_of_nothing_but_zeros_give_no_ratio():
    zeros = seen_windows([1] * 4 + [0] * 4, 1.0)
    row = one_row(5.0, NOW_S, zeros, zeros)
    assert row["customer_average_30d"] == 0
    assert math.isnan(row["amount_over_customer_average_30d"])


def test_rows_that_do_not_fit_their_buffer_are_refused():
    unknown = Windows.unknown(1)
    with pytest.raises(ValueError, match=r"out is \(1, 24\)"):
        assemble(np.array([1]), np.array([NOW_S]), unknown, unknown, np.empty((1, 24), np.float32))
