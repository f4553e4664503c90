from __future__ import annotations

import pytest
from headroom_client.timing import ServerTiming, parse_server_timing
from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.timings import server_timing


def test_stages_come_in_their_order_with_their_milliseconds() -> None:
    timing = parse_server_timing("fetch_features;dur=0.41, score;dur=1.5")
    assert list(timing.stages_ms.items()) == [("fetch_features", 0.41), ("score", 1.5)]
    assert timing.total_ms == pytest.approx(1.91)


@pytest.mark.parametrize(
    ("text", "stages_ms"),
    [
        (None, {}),
        ("", {}),
        ("cache", {}),
        ('db;desc="a, b; dur=9";dur=2', {"db": 2.0}),
        ("db; DUR = 2 ;desc=x", {"db": 2.0}),
        ("db;dur=1.2.3, score;dur=1", {"score": 1.0}),
        (";dur=1", {}),
    ],
)
def test_entries_without_a_readable_duration_are_left_out(text: str | None, stages_ms: dict[str, float]) -> None:
    assert parse_server_timing(text) == ServerTiming(stages_ms)


@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    parse_server_timing(text)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.integers(0, 10**12)), st.integers(0, 10**9))
def test_it_reads_what_the_server_writes(stages_ns: dict[str, int], queue_ns: int) -> None:
    stages_ns.pop("queue", None)
    expected_ms = {"queue": queue_ns / 1e6} | {stage: ns / 1e6 for stage, ns in stages_ns.items()}
    assert parse_server_timing(f"queue;dur={queue_ns / 1e6:.3f}{server_timing(stages_ns)}").stages_ms == pytest.approx(
        expected_ms, abs=5.01e-4
    )
