"""The timing wheel against a plain list: never early, never lost, also over many turns and idle gaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.budgets.wheel import TimingWheel

TICK_NS = 1_000
SLOTS = 8
TURN_NS = TICK_NS * SLOTS


class PlainWheel:
    """The definition: an entry expires with the first advance in a tick that is not before its own."""

    def __init__(self, now_ns: int) -> None:
        self.filed: list[tuple[int, int]] = []
        self.next_tick = now_ns // TICK_NS

    def add(self, at_ns: int, entry: int) -> None:
        self.filed.append((max(-(-at_ns // TICK_NS), self.next_tick), entry))

    def advance(self, now_ns: int) -> list[int]:
        tick = now_ns // TICK_NS
        expired = [entry for at, entry in sorted(self.filed) if at <= tick]
        self.filed = [filed for filed in self.filed if filed[0] > tick]
        self.next_tick = tick + 1
        return expired


gaps = st.one_of(st.integers(0, 3 * TICK_NS), st.integers(0, 4 * TURN_NS), st.just(TURN_NS), st.just(1000 * TURN_NS))
offsets = st.one_of(st.integers(-2 * TICK_NS, 3 * TICK_NS), st.integers(0, 5 * TURN_NS), st.just(TURN_NS))
steps = st.lists(st.tuples(gaps, st.lists(offsets, max_size=4), st.booleans()), max_size=30)


@given(st.integers(0, 10**6), steps)
def test_the_wheel_expires_what_the_definition_expires(began_ns, taken):
    now_ns, entry = began_ns, 0
    wheel, plain = TimingWheel(now_ns, tick_ns=TICK_NS, num_slots=SLOTS), PlainWheel(now_ns)
    for gap_ns, added, advances in [*taken, (100 * TURN_NS, [], True)]:
        now_ns += gap_ns
        for offset_ns in added:
            entry += 1
            wheel.add(now_ns + offset_ns, entry)
            plain.add(now_ns + offset_ns, entry)
        if advances:
            assert sorted(wheel.advance(now_ns)) == sorted(plain.advance(now_ns))
        assert wheel.num_entries == len(plain.filed)
    assert wheel.num_entries == 0


@given(steps)
def test_nothing_expires_before_its_deadline_nor_more_than_a_tick_after_an_advance(taken):
    now_ns = 0
    wheel: TimingWheel[tuple[int, int]] = TimingWheel(now_ns, tick_ns=TICK_NS, num_slots=SLOTS)
    waiting: set[tuple[int, int]] = set()
    for i, (gap_ns, added, _) in enumerate(taken):
        now_ns += gap_ns
        for k, offset_ns in enumerate(added):
            entry = (now_ns + offset_ns, 100 * i + k)
            wheel.add(entry[0], entry)
            waiting.add(entry)
        now_ns += TICK_NS
        expired = wheel.advance(now_ns)
        assert all(at_ns <= now_ns for at_ns, _ in expired)
        waiting -= set(expired)
        assert all(at_ns > now_ns - TICK_NS for at_ns, _ in waiting)


@given(st.lists(st.integers(0, 3 * TURN_NS), max_size=20), st.integers(0, 4 * TURN_NS))
def test_expired_entries_come_earliest_tick_first(added, now_ns):
    wheel: TimingWheel[int] = TimingWheel(0, tick_ns=TICK_NS, num_slots=SLOTS)
    for at_ns in added:
        wheel.add(at_ns, -(-at_ns // TICK_NS))
    expired = wheel.advance(now_ns)
    assert expired == sorted(expired)


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_an_entry_further_away_than_a_turn_waits_for_its_round(turns):
    wheel: TimingWheel[str] = TimingWheel(0, tick_ns=TICK_NS, num_slots=SLOTS)
    at_ns = turns * TURN_NS + 3 * TICK_NS
    wheel.add(at_ns, "x")
    for now_ns in range(0, at_ns, TICK_NS):
        assert wheel.advance(now_ns) == []
    assert wheel.advance(at_ns) == ["x"]
    assert wheel.num_entries == 0


def test_an_entry_added_after_a_long_idle_gap_is_on_time():
    wheel: TimingWheel[str] = TimingWheel(0, tick_ns=TICK_NS, num_slots=SLOTS)
    now_ns = 1_000_000 * TURN_NS
    wheel.add(now_ns + 2 * TICK_NS, "x")
    assert wheel.advance(now_ns + TICK_NS) == []
    assert wheel.advance(now_ns + 2 * TICK_NS) == ["x"]


def test_an_entry_already_past_expires_with_the_next_tick():
    wheel: TimingWheel[str] = TimingWheel(10 * TICK_NS, tick_ns=TICK_NS, num_slots=SLOTS)
    wheel.advance(10 * TICK_NS)
    wheel.add(0, "x")
    assert wheel.advance(11 * TICK_NS) == ["x"]
