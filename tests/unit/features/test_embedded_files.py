"""The embedded store whose file is missing, foreign, replaced, cut short or damaged, or comes back."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from serve.features.embedded import EmbeddedStore
from serve.features.store import StoreFailed
from tests.unit.features.store_cases import (
    NOW_S,
    assert_windows_are_the_logs,
    commit,
    event_of,
    events,
    events_of,
    open_store,
    score,
    totals,
    window_states,
)

SOMEBODY_ELSE = 54321


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
        txn.put(b"cbad", txn.get(b"cbad")[:80])
    batch = events_of(("d", "good", "t", NOW_S, 1), ("e", "bad", "t", NOW_S, 1))
    assert totals(store, batch) == [1, 0]
    assert "1 window states were damaged" in caplog.text
    score(store, batch)
    assert totals(store, events_of(("f", "good", "t", NOW_S, 1), ("g", "bad", "t", NOW_S, 1))) == [2, 1]
