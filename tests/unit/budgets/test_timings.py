"""Timings: stages follow each other without a gap and come out in the Server-Timing form."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.timings import Timings, server_timing

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**9)), max_size=20))
def test_stages_add_up_to_the_whole_without_a_gap(steps):
    clock = Clock()
    timings = Timings(clock)
    timings.start()
    for stage, duration_ns in steps:
        clock.now_ns += duration_ns
        timings.end(stage)
    assert timings.total_ns == sum(duration_ns for _, duration_ns in steps)
    assert list(timings.stages_ns) == list(dict.fromkeys(stage for stage, _ in steps))


def test_what_passes_before_a_new_start_belongs_to_no_stage():
    clock = Clock()
    timings = Timings(clock)
    timings.start()
    clock.now_ns += 5
    timings.end("a")
    clock.now_ns += 100
    timings.start()
    clock.now_ns += 7
    timings.end("a")
    assert timings.stages_ns == {"a": 12}


def test_two_batches_do_not_share_their_stages():
    Timings().stages_ns["a"] = 1
    assert Timings().stages_ns == {}


def test_server_timing_is_in_milliseconds_and_follows_the_requests_own_queue():
    assert server_timing({"decode": 12_345, "score": 2 * MS}) == ", decode;dur=0.012, score;dur=2.000"
    assert server_timing({}) == ""


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.integers(0, 10**12)))
def test_server_timing_behind_a_queue_is_a_valid_header_whatever_the_times(stages_ns):
    metric = r"[a-z_]+;dur=\d+\.\d{3}"
    assert re.fullmatch(rf"{metric}(, {metric})*", "queue;dur=0.100" + server_timing(stages_ns))
