"""The embedded store in one process: decisions and windows, what it does without a file, or with a bad or full one."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from serve.features import retention
from serve.features.embedded import EmbeddedStore
from serve.features.store import Events, StoreFailed
from tests.unit.features.store_cases import (
    NEVER_NS,
    NOW_S,
    assert_same_windows,
    assert_windows_are_the_logs,
    batches,
    commit,
    decision_of,
    events,
    events_of,
    joined,
    joined_events,
    logged,
    offline,
    open_store,
    part_of,
    replayed_states,
    score,
    window_states,
)

SOMEBODY_ELSE = 54321


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    one = open_store(path)
    yield one
    one.close()


def event_of(call: Callable[[], object]) -> str:
    with pytest.raises(StoreFailed) as failure:
        call()
    return failure.value.event


def totals(store: EmbeddedStore, batch: Events) -> list[int]:
    """How many transactions each row's customer made in the 30 days before."""
    return store.fetch(batch).customer.totals[:, 3].tolist()


# Decisions and windows.


def test_new_transaction_is_unknown_then_counted_and_its_decision_kept(store):
    first = events_of(("a", "c", "t", NOW_S, 50_000))
    assert not store.fetch(first).stored
    assert not store.fetch(first).customer.totals.any()
    assert score(store, first) == []
    second = store.fetch(events_of(("b", "c", "t", NOW_S + 60, 1)))
    assert second.customer.totals.tolist() == [[1] * 4 + [50_000] * 4]
    assert second.terminal.totals.tolist() == second.customer.totals.tolist()
    assert [one.decision for one in store.fetch(first).stored] == [decision_of("a")]


def test_customer_and_terminal_of_the_same_name_are_two_keys(store):
    score(store, events_of(("a", "x", "y", NOW_S, 1)))
    seen = store.fetch(events_of(("b", "y", "x", NOW_S, 1)))
    assert not seen.customer.totals.any()
    assert not seen.terminal.totals.any()


def test_online_windows_equal_the_backfill_whatever_the_batches(store):
    rng = np.random.default_rng(5)
    everything = events(3_000, seed=5)
    seen = []
    for rows in batches(3_000, rng):
        batch = part_of(everything, rows)
        fetched = store.fetch(batch)
        seen.append(fetched)
        commit(store, batch, fetched)
    customer, terminal = offline(everything)
    assert_same_windows(joined([one.customer for one in seen]), customer)
    assert_same_windows(joined([one.terminal for one in seen]), terminal)
    assert_windows_are_the_logs(store)


def test_retry_gets_the_first_decision_and_is_counted_once_also_beside_new_rows(store):
    score(store, events_of(("a", "c", "t", NOW_S, 10)))
    batch = events_of(("new 1", "c", "t", NOW_S, 1), ("a", "c", "t", NOW_S, 10), ("new 2", "c", "t", NOW_S, 1))
    fetched = store.fetch(batch)
    assert [(one.row, one.decision) for one in fetched.stored] == [(1, decision_of("a"))]
    assert fetched.customer.totals[[0, 2], 0].tolist() == [1, 2]
    assert commit(store, batch, fetched) == []
    assert totals(store, events_of(("z", "c", "t", NOW_S, 0))) == [3]
    assert_windows_are_the_logs(store)


def test_decision_given_for_a_row_that_was_decided_before_is_ignored(store):
    first = events_of(("a", "c", "t", NOW_S, 10))
    score(store, first)
    assert store.commit(first, [b"another"], store.fetch(first), NEVER_NS) == []
    assert store.fetch(first).stored[0].decision == decision_of("a")
    assert_windows_are_the_logs(store)


def test_row_without_a_decision_is_neither_recorded_nor_counted(store):
    batch = events_of(("a", "c", "t", NOW_S, 10), ("b", "c", "t", NOW_S, 20))
    assert store.commit(batch, [None, b"decision"], store.fetch(batch), NEVER_NS) == []
    assert logged(store).transaction_ids == ("b",)
    assert_windows_are_the_logs(store)


def test_batch_committed_between_reading_and_recording_comes_first(store):
    ours = events_of(("a", "c", "t", NOW_S, 1), ("b", "c", "t", NOW_S, 2))
    fetched = store.fetch(ours)
    score(store, events_of(("b", "c", "t", NOW_S, 2), ("x", "c", "t", NOW_S, 4)), process="theirs")
    meanwhile = commit(store, ours, fetched, process="ours")
    assert [(one.row, one.decision) for one in meanwhile] == [(1, decision_of("b", "theirs"))]
    assert totals(store, events_of(("z", "c", "t", NOW_S, 0))) == [3]
    assert_windows_are_the_logs(store)


def test_committing_the_same_batch_twice_records_it_once(store):
    batch = events(50, seed=1)
    fetched = store.fetch(batch)
    assert commit(store, batch, fetched, process="first") == []
    again = commit(store, batch, fetched, process="second")
    assert [one.decision for one in again] == [decision_of(name, "first") for name in batch.transaction_ids]
    assert_windows_are_the_logs(store)


@pytest.mark.parametrize(
    "name",
    ["\U0001f4b3" * 96, "é" * 96, "a\0b", "\0", "", "c", "a" * 96, "\uffff", "x" * 95 + "\U0010ffff"],
    ids=ascii,
)
def test_any_id_is_kept_apart_from_its_neighbours(store, name):
    batch = events_of((name, name, name, NOW_S, 1), (name + "\0", name + "\0", name + "\0", NOW_S, 2))
    score(store, batch)
    assert [one.row for one in store.fetch(batch).stored] == [0, 1]
    assert logged(store).customer_ids == (name, name + "\0")
    assert totals(store, events_of(("z", name, name, NOW_S, 0))) == [1]


def test_many_rows_of_one_key_in_one_batch_see_each_other_in_order(store):
    batch = events_of(*((f"{n}", "c", "t", NOW_S + n, n) for n in range(2_000)))
    fetched = store.fetch(batch)
    assert fetched.customer.totals[:, 0].tolist() == list(range(2_000))
    commit(store, batch, fetched)
    assert_windows_are_the_logs(store)


def test_long_decisions_are_kept(store):
    batch = events(3, seed=1)
    decisions = [os.urandom(size) for size in (2_000, 5_000, 100_000)]
    store.commit(batch, decisions, store.fetch(batch), NEVER_NS)
    assert [one.decision for one in store.fetch(batch).stored] == decisions


def test_log_is_read_from_after_a_number_on(store):
    for seed in range(3):
        score(store, events(10, seed=seed))
    whole = store.read_log()
    assert [number for number, _ in whole] == sorted(number for number, _ in whole)
    assert store.read_log(after=whole[9][0]) == whole[10:]
    assert store.read_log(after=whole[-1][0]) == []


def test_numbers_rise_when_the_clock_goes_back(path):
    seconds = iter([1_000.0, 500.0, 2_000.0])
    store = open_store(path, wall_clock_s=lambda: next(seconds), housekeeping_s=3600)
    for seed in range(3):
        score(store, events(2, seed=seed))
    assert [number for number, _ in store.read_log()] == [
        1_000_000_000, 1_000_000_001, 1_000_000_002, 1_000_000_003, 2_000_000_000, 2_000_000_001,
    ]  # fmt: skip
    store.close()


def test_failure_of_a_callers_making_changes_nothing(store):
    batch = events(10, seed=1)
    bad = Events([*batch.transaction_ids[:9], batch.transaction_ids[0]], *(
        getattr(batch, name) for name in ("customer_ids", "terminal_ids", "event_s", "amount_e4")
    ))  # fmt: skip
    fetched = store.fetch(bad)
    assert event_of(lambda: commit(store, bad, fetched)) == "error"
    assert store.read_log() == []
    assert window_states(store) == {}
    score(store, batch)
    assert_windows_are_the_logs(store)


# Opening, closing, and files that are not what they should be.


def test_everything_is_there_again_after_reopening(path):
    store = open_store(path)
    batch = events(300, seed=1)
    score(store, batch)
    states = window_states(store)
    store.close()
    again = open_store(path)
    assert window_states(again) == states
    assert_windows_are_the_logs(again)
    score(again, events(300, seed=2))
    assert_windows_are_the_logs(again)
    again.close()


def test_batch_read_before_reopening_is_recorded_rightly_after_it(store, path):
    """The transaction numbers of a new file may be those of the old one."""
    for seed in range(3):
        score(store, events(20, seed=seed))
    batch = events(20, seed=9)
    fetched = store.fetch(batch)
    shutil.rmtree(path)
    store.check()
    for seed in range(3):
        score(store, events(20, seed=10 + seed))
    assert commit(store, batch, fetched) == []
    assert_windows_are_the_logs(store)


def test_closed_store_says_so_and_stays_closed(path):
    store = open_store(path)
    batch = events(1, seed=1)
    fetched = store.fetch(batch)
    store.close()
    store.check()
    assert event_of(lambda: store.fetch(batch)) == "closed"
    assert event_of(lambda: commit(store, batch, fetched)) == "closed"
    assert store.bytes_used() == 0


def test_folder_and_files_are_private(store, path):
    score(store, events(1, seed=1))
    modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.iterdir()}
    assert path.stat().st_mode & 0o777 == 0o700
    assert modes == {"data.mdb": 0o600, "lock.mdb": 0o600}


def test_folder_open_to_others_is_closed_to_them(path, caplog):
    path.mkdir()
    path.chmod(0o755)
    store = open_store(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert "open to other users" in caplog.text
    store.close()


def test_folder_of_another_user_is_not_used_until_it_is_ours(path, monkeypatch, caplog):
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY_ELSE)
    store = open_store(path)
    assert event_of(lambda: store.fetch(events(1, seed=1))) == "unavailable"
    assert f"belongs to user {us}; allowed: {SOMEBODY_ELSE}" in caplog.text
    assert list(path.iterdir()) == []
    monkeypatch.undo()
    store.check()
    score(store, events(1, seed=1))
    store.close()


def test_path_that_is_a_file_is_unavailable_until_it_is_gone_and_said_once(path, caplog):
    path.write_text("in the way")
    store = open_store(path)
    for _ in range(3):
        store.check()
        assert event_of(lambda: store.fetch(events(1, seed=1))) == "unavailable"
    assert caplog.text.count("cannot be opened") == 1
    path.unlink()
    store.check()
    score(store, events(1, seed=1))
    store.close()


def test_store_that_another_one_of_this_process_has_open_is_unavailable(store, path):
    second = open_store(path)
    assert event_of(lambda: second.fetch(events(1, seed=1))) == "unavailable"
    score(store, events(1, seed=1))
    second.close()
    score(store, events(1, seed=2))


@pytest.mark.parametrize("what", ["folder", "data.mdb", "lock.mdb"])
def test_removed_files_fail_the_next_commit_and_are_made_anew(store, path, what):
    score(store, events(20, seed=1))
    batch = events(20, seed=2)
    fetched = store.fetch(batch)
    shutil.rmtree(path) if what == "folder" else (path / what).unlink()
    assert event_of(lambda: commit(store, batch, fetched)) == "replaced"
    score(store, batch)
    assert_windows_are_the_logs(store)
    assert len(store.read_log()) == (40 if what == "lock.mdb" else 20)


def test_check_notices_a_removed_folder_by_itself(store, path):
    score(store, events(20, seed=1))
    shutil.rmtree(path)
    store.check()
    assert store.read_log() == []
    score(store, events(20, seed=1))


def test_file_put_in_place_of_the_open_one_is_taken_up_with_a_lock_of_its_own(store, path, tmp_path):
    other = open_store(tmp_path / "other")
    score(other, events(30, seed=3))
    other.close()
    for seed in range(4):
        score(store, events(10, seed=seed))
    former_lock = os.open(path / "lock.mdb", os.O_RDONLY)
    shutil.copy(tmp_path / "other" / "data.mdb", path / "new.mdb")
    os.replace(path / "new.mdb", path / "data.mdb")
    store.check()
    assert len(store.read_log()) == 30
    assert not os.path.samestat(os.fstat(former_lock), (path / "lock.mdb").stat())
    score(store, events(10, seed=7))
    assert_windows_are_the_logs(store)
    os.close(former_lock)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store's file of about two megabytes."""
    path = tmp_path_factory.mktemp("whole") / "features"
    store = open_store(path)
    for seed in range(16):
        score(store, events(256, seed=seed, num_customers=400, num_terminals=400))
    store.close()
    return (path / "data.mdb").read_bytes()


def put_file(path: Path, content: bytes) -> None:
    path.mkdir(mode=0o700)
    (path / "data.mdb").write_bytes(content)


def score_many(store: EmbeddedStore, num_batches: int) -> list[str]:
    """How the store failed, of that many batches."""
    failures = []
    for seed in range(num_batches):
        try:
            score(store, events(64, seed=1_000 + seed, num_customers=400, num_terminals=400))
        except StoreFailed as failure:
            failures.append(failure.event)
    return failures


@pytest.mark.parametrize("num_bytes", [1, 100, 4096, 8191, 8192, 500_000])
def test_file_cut_short_before_opening_is_set_aside(path, whole_file, num_bytes):
    put_file(path, whole_file[:num_bytes])
    store = open_store(path)
    assert (path / "damaged-data.mdb").stat().st_size == num_bytes
    assert store.read_log() == []
    score(store, events(10, seed=1))
    assert_windows_are_the_logs(store)
    store.close()


def test_file_that_lost_its_last_pages_is_found_damaged_when_they_are_read(path, whole_file):
    put_file(path, whole_file[:-400_000])
    store = open_store(path)
    assert score_many(store, 10) == ["damaged"]
    assert (path / "damaged-data.mdb").exists()
    assert_windows_are_the_logs(store)
    store.close()


def test_empty_file_is_a_new_one(path):
    put_file(path, b"")
    store = open_store(path)
    score(store, events(10, seed=1))
    assert not (path / "damaged-data.mdb").exists()
    store.close()


@pytest.mark.parametrize(
    "content", [os.urandom(50_000), bytes(50_000), b"SQLite format 3\0" * 4_000], ids=["random", "zeros", "text"]
)
def test_file_of_anything_else_is_set_aside(path, content):
    put_file(path, content)
    store = open_store(path)
    score(store, events(10, seed=1))
    assert (path / "damaged-data.mdb").read_bytes()[:100] == content[:100]
    store.close()


@pytest.mark.parametrize("seed", range(8))
def test_damaged_pages_cost_at_most_one_batch_and_the_store_begins_anew(path, whole_file, seed):
    rng = random.Random(seed)
    pages = bytearray(whole_file)
    for _ in range(rng.choice([1, 30, 300])):
        at = 4096 * rng.randrange(2, len(pages) // 4096)
        pages[at : at + 4096] = bytes(4096) if seed % 2 else rng.randbytes(4096)
    put_file(path, pages)
    store = open_store(path)
    failures = score_many(store, 15)
    assert failures in ([], ["damaged"])
    if failures:
        assert (path / "damaged-data.mdb").exists()
        assert_windows_are_the_logs(store)
    store.close()


def test_damaged_state_makes_its_key_start_anew_and_no_other(store, caplog):
    score(store, events_of(("a", "good", "t", NOW_S, 1), ("b", "bad", "t", NOW_S, 1)))
    with store._opened().env.begin(write=True) as txn:
        txn.put(b"cbad", txn.get(b"cbad")[:-8])
    batch = events_of(("d", "good", "t", NOW_S, 1), ("e", "bad", "t", NOW_S, 1))
    assert totals(store, batch) == [1, 0]
    assert "1 window states were damaged" in caplog.text
    score(store, batch)
    assert totals(store, events_of(("f", "good", "t", NOW_S, 1), ("g", "bad", "t", NOW_S, 1))) == [2, 1]


# Bounds.


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
            np.full(256, NOW_S), np.ones(256, np.int64),
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
    later_s = NOW_S + 31 * 86_400 + 1
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
        assert all(int.from_bytes(states[key][8:16], "little") < newest_s - 31 * 86_400 for key in swept)
        store.close()


# Threads.


def test_reading_recording_checking_and_replacing_at_once_never_fail_otherwise_than_said(path):
    """What Ray's thread, the runner and the writer do; here as fast as they can."""
    store = open_store(path, housekeeping_s=0.001)
    is_over = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            if not isinstance(error, StoreFailed) or error.event not in ("replaced", "unavailable"):
                errors.append(error)

    def again_and_again(work: Callable[[], object]) -> None:
        while not is_over.is_set():
            guarded(work)

    def replace_it() -> None:
        shutil.rmtree(path, ignore_errors=True)
        is_over.wait(0.005)

    works = (store.check, store.bytes_used, lambda: store.fetch(events(64, seed=3)), replace_it)
    threads = [threading.Thread(target=again_and_again, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for seed in range(300):
        guarded(lambda seed=seed: score(store, events(64, seed=seed)))
    is_over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    store.check()
    store.check()
    score(store, events(64, seed=999))
    assert_windows_are_the_logs(store)
    store.close()
