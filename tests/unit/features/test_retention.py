"""What the embedded store forgets: for want of room, by age, and of keys that went quiet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from serve.features import retention
from serve.features.store import Events, StoreFailed
from tests.unit.features.store_cases import (
    NOW_S,
    events,
    events_of,
    joined_events,
    open_store,
    replayed_states,
    score,
    totals,
    window_states,
)


def test_full_store_forgets_its_oldest_decisions_and_goes_on(path):
    max_bytes, num_batches = 4 << 20, 300
    store = open_store(path, max_bytes=max_bytes)
    for seed in range(num_batches):
        score(store, events(64, seed=seed, num_customers=50, num_terminals=50))
        assert store.bytes_used() <= 0.85 * max_bytes
    kept = [entry.transaction_id for _, entry in store.read_log()]
    assert kept == [name for seed in range(num_batches) for name in events(64, seed=seed).transaction_ids][-len(kept) :]
    assert 3_000 < len(kept) < 64 * num_batches
    assert not store.fetch(events(64, seed=0)).stored
    assert len(store.fetch(events(64, seed=num_batches - 1)).stored) == 64
    store.close()


def test_batch_that_needs_more_free_pages_than_there_are_makes_room_for_itself(path):
    store = open_store(path, max_bytes=3 << 20)
    for seed in range(60):
        score(store, events(256, seed=seed, num_customers=400, num_terminals=400))
    arrived = [events(256, seed=seed, num_customers=400, num_terminals=400) for seed in range(60)]
    assert window_states(store) == replayed_states(joined_events(arrived))
    store.close()


def test_store_full_of_windows_fails_as_full_still_reads_and_recovers_when_there_is_room(path):
    clock = [float(NOW_S)]
    store = open_store(path, max_bytes=8 << 20, wall_clock_s=lambda: clock[0], housekeeping_s=3600)
    failures: list[str] = []
    for seed in range(200):
        batch = Events(
            [f"{seed}-{n}" for n in range(256)], [f"{seed}-{n}" for n in range(256)], ["t"] * 256,
            np.full(256, NOW_S), np.ones(256, np.int64), np.full((256, 2), np.nan),
        )  # fmt: skip
        try:
            score(store, batch)
        except StoreFailed as failure:
            failures.append(failure.event)
            if len(failures) == 5:
                break
    assert failures == ["full"] * 5
    known = events_of(("z", "0-0", "t", NOW_S + 1, 1))
    assert totals(store, known) == [1]
    clock[0] += 40 * 86_400
    later = events_of(("later", "c", "t", NOW_S + 40 * 86_400, 1))
    store._retention.saw(NOW_S + 40 * 86_400)
    for _ in range(200):
        store._housekeep()
    score(store, later)
    assert totals(store, known) == [0]
    store.close()


def test_decisions_older_than_the_age_are_forgotten_a_bounded_number_a_round(path):
    clock = [1_000_000.0]
    store = open_store(path, max_age_s=100, wall_clock_s=lambda: clock[0], housekeeping_s=3600)
    for seed in range(5):
        score(store, events(500, seed=seed))
    clock[0] += 60
    score(store, events(10, seed=9))
    states = window_states(store)
    store._housekeep()
    assert len(store.read_log()) == 2_510
    clock[0] += 41
    left = []
    for _ in range(4):
        store._housekeep()
        left.append(len(store.read_log()))
    assert left == [2_510 - 1_024, 2_510 - 2_048, 10, 10]
    assert not store.fetch(events(500, seed=0)).stored
    assert len(store.fetch(events(10, seed=9)).stored) == 10
    assert window_states(store) == states
    store.close()


def test_windows_of_keys_that_went_quiet_are_swept_a_bounded_number_a_round(path):
    later_s = NOW_S + retention.IDLE_S + 1
    store = open_store(path, wall_clock_s=lambda: float(later_s), housekeeping_s=3600)
    score(store, events_of(*((f"{n}", f"quiet {n}", "t", NOW_S, 1) for n in range(1_000))))
    store._housekeep()
    assert len(window_states(store)) == 1_001
    busy = events_of(*((f"busy {n}", f"busy {n}", "t", later_s - n, 1) for n in range(600)))
    score(store, busy)
    left = [len(window_states(store))]
    for _ in range(8):
        store._housekeep()
        left.append(len(window_states(store)))
    assert all(0 <= before - after <= 256 for before, after in pairwise(left))
    assert set(window_states(store)) == {b"tt", *(f"cbusy {n}".encode() for n in range(600))}
    store.close()


def test_key_that_is_used_again_while_it_is_swept_is_kept(store, monkeypatch):
    score(store, events_of(("x", "busy", "t", NOW_S, 1)))
    monkeypatch.setattr(retention, "_idle_keys", lambda *_: ([b"cbusy", b"cgone"], b"c"))
    store._housekeep()
    assert set(window_states(store)) == {b"cbusy", b"tt"}


def test_replay_of_old_events_keeps_its_windows_and_a_clock_behind_the_events_too(path):
    for now_s in (NOW_S + 10**8, NOW_S - 10**8):
        store = open_store(path / str(now_s), wall_clock_s=lambda now_s=now_s: float(now_s), housekeeping_s=3600)
        score(store, events(500, seed=1, num_customers=100))
        states = window_states(store)
        for _ in range(3):
            store._housekeep()
        fresh = {key for key, state in states.items() if len(state)}
        newest_s = int(events(500, seed=1).event_s.max())
        swept = fresh - set(window_states(store))
        assert all(int.from_bytes(states[key][8:16], "little") < newest_s - retention.IDLE_S for key in swept)
        store.close()
