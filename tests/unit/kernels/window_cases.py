"""What the tests of the window kernels share: the kernel on lists, states, seconds and amounts at the edges."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from kernels import profiles
from kernels import reference_windows as twin
from kernels import windows as kernel

DAY_S = 86_400
ANCHOR_S = 1_600_041_600  # a midnight: every bucket begins here
NOWHERE = (math.nan, math.nan)

# Seconds that meet bucket edges, each other, and the lateness bound, as well as wide gaps.
offsets_s = st.one_of(
    st.integers(0, 90),
    st.integers(0, 3 * DAY_S),
    st.integers(0, 45 * DAY_S),
    st.builds(
        lambda unit, n, by: max(0, unit * n + by),
        st.sampled_from([*kernel.BUCKET_S, *kernel.WINDOW_S]),
        st.integers(0, 30),
        st.sampled_from([-1, 0, 1]),
    ),
)
amounts_e4 = st.one_of(
    st.integers(0, 5_000_000), st.integers(-5_000_000, 5_000_000), st.just(kernel.MAX_AMOUNT_E4), st.just(0)
)
anchors = st.sampled_from([0, ANCHOR_S])


class Advanced(NamedTuple):
    """What the kernel gives, the new states as a list of arrays."""

    totals: np.ndarray
    since_last_s: np.ndarray
    profile: np.ndarray
    is_late: np.ndarray
    is_damaged: np.ndarray
    states: list[np.ndarray]


def advance(states, key_of_row, event_s, amount_e4, terminal=None, place=None) -> Advanced:
    """The kernel on lists; with terminals, every key is a customer."""
    blobs = [np.asarray(state, np.int64) for state in states]
    *rows, new, bounds = kernel.advance(
        np.concatenate([np.empty(0, np.int64), *blobs]),
        np.array([blob.nbytes for blob in blobs], np.int64),
        np.array(key_of_row, np.int32),
        np.array(event_s, np.int64),
        np.array(amount_e4, np.int64),
        0 if terminal is None else len(blobs),
        np.array([] if terminal is None else terminal, np.int64),
        np.array([] if place is None else place, np.float64).reshape(-1, 2),
    )
    ends = bounds // kernel.WORD_BYTES
    return Advanced(*rows, [new[begin:end] for begin, end in pairwise(ends)])


def state_of(event_s, amount_e4=None):
    """One key's state after the events."""
    amounts = [10_000] * len(event_s) if amount_e4 is None else amount_e4
    return advance([[]], [0] * len(event_s), event_s, amounts).states[0]


def customer_state_of(event_s, terminal, place=None):
    """One customer's state after the events, of one currency unit each."""
    n = len(event_s)
    return advance([[]], [0] * n, event_s, [10_000] * n, terminal, place or [NOWHERE] * n).states[0]


def totals_of(counts, sums, risk_counts=(0, 0, 0), frauds=(0, 0, 0)):
    """A row's totals."""
    return [*counts, *sums, *risk_counts, *frauds]


def assert_same(totals, since_last_s, is_late, seen: twin.Seen):
    assert totals.tolist() == totals_of(seen.counts, seen.sums, seen.risk_counts, seen.frauds)
    assert since_last_s == seen.since_last_s or (math.isnan(since_last_s) and math.isnan(seen.since_last_s))
    assert bool(is_late) is seen.is_late


def hot_key_events():
    """Fills every level to its bound: 6-hourly for 38 days, hourly for 8, 5-minutely for 2, each minute for 25 h."""
    end_s = ANCHOR_S + 40 * DAY_S
    spans = zip(kernel.RETAINED_S, kernel.BUCKET_S, strict=True)
    times = [range(end_s - span - DAY_S, end_s, bucket) for span, bucket in spans]
    return sorted(second for span in times for second in span)


def damage(state, data):
    """Changes one to three words of a copy, then cuts it."""
    damaged = state.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        word = data.draw(st.integers(0, damaged.size - 1))
        damaged[word] = data.draw(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 3000))
    return damaged[: data.draw(st.integers(0, damaged.size))]


def history_twin(past) -> twin.KeyHistory:
    """After those seconds, of one currency unit each."""
    return twin.KeyHistory([twin.Event(second, 10_000) for second in past])


NO_PROFILE = profiles.NUM_COLUMNS * [math.nan]
