"""What was erased leaves the disk: the embedded store's file is replaced by a copy that never held it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from serve.features import erasure
from serve.features.database import held
from serve.features.embedded import EmbeddedStore
from tests.redis_server import until
from tests.unit.features.erasure_cases import (
    VICTIM,
    erasures,
    housekeep_until,
    housekeep_until_compacted,
    open_quiet,
)
from tests.unit.features.store_cases import (
    NOW_S,
    StoreProcess,
    assert_windows_are_the_logs,
    commit,
    event_of,
    events,
    events_of,
    on_disk,
    open_store,
    score,
)


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    one = open_quiet(path)
    yield one
    one.close()


def test_nothing_of_an_erased_customer_is_on_the_disk_after_compaction(store, path):
    for seed in range(20):
        score(store, events(64, seed=seed))
        score(store, events_of(*((f"victims {seed} {n}", "victim", f"t{n}", NOW_S, 1) for n in range(10))))
    assert on_disk(path).count(b"victim") > 200
    store.erase("victim")
    housekeep_until_compacted(store, path)
    assert b"victim" not in on_disk(path)
    assert len(store.read_log()) == 20 * 64
    assert {file.name for file in path.iterdir()} == {"data.mdb", "lock.mdb"}
    assert (path / "data.mdb").stat().st_mode & 0o777 == 0o600
    score(store, events(64, seed=99))
    assert len(store.fetch(events(64, seed=99)).stored) == 64


def test_reading_labelling_and_erasing_go_on_while_the_file_is_replaced(store, path):
    """What a caller of the records would be told is that the store does not answer."""
    score(store, events(64, seed=1))
    is_over = threading.Event()
    failures: list[Exception] = []
    works = (
        lambda: store.find("1-1"),
        lambda: store.label({"1-1": True}),
        lambda: store.erase("nobody"),
        store.read_log,
    )
    num_done = [0] * len(works)

    def again_and_again(index: int) -> None:
        try:
            while not is_over.is_set():
                works[index]()
                num_done[index] += 1
        except Exception as error:
            failures.append(error)

    def have_gone_on(before: list[int]) -> bool:
        return bool(failures) or all(n > was + 1 for n, was in zip(num_done, before, strict=True))

    threads = [threading.Thread(target=again_and_again, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            store.erase(f"victim {number}")
            housekeep_until_compacted(store, path)
            until(partial(have_gone_on, list(num_done)), "all of them go on")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.parametrize("num_bytes", [1_000, 2_500, 3_900, 9_000])
def test_nor_in_the_rest_of_a_page_that_a_long_value_does_not_fill(store, path, num_bytes):
    """LMDB fills no page that it uses again: what was there before is behind the new value."""
    for seed in range(30):
        mine = events_of(*((f"victims {seed} {n}", "victim", "t", NOW_S, 1) for n in range(8)))
        store.commit(mine, [b"victim's".ljust(8) * (num_bytes // 8)] * 8, store.fetch(mine), 1 << 62)
        others = events(8, seed=seed)
        store.commit(others, [b"other's" * (2_200 // 7)] * 8, store.fetch(others), 1 << 62)
    store.erase("victim")
    housekeep_until_compacted(store, path)
    for seed in range(100, 130):
        others = events(8, seed=seed)
        store.commit(others, [b"other's" * (2_200 // 7)] * 8, store.fetch(others), 1 << 62)
    assert b"victim" not in on_disk(path)
    assert len(store.read_log()) == 60 * 8


def test_compaction_waits_for_its_time_and_for_the_search(path):
    clock = [1_000_000.0]
    store = open_store(path, housekeeping_s=3600, compact_after_s=500, wall_clock_s=lambda: clock[0])
    score(store, VICTIM)
    former = (path / "data.mdb").stat().st_ino
    store.erase("victim")
    clock[0] += 1_000
    store._housekeep()
    for _ in range(3):
        clock[0] += 166
        store._housekeep()
        assert (path / "data.mdb").stat().st_ino == former
    clock[0] += 3
    store._housekeep()
    assert (path / "data.mdb").stat().st_ino != former
    assert b"victim" not in on_disk(path)
    store.close()


def test_store_is_compacted_once_and_not_again_without_an_erasure(store, path):
    score(store, VICTIM)
    store.erase("victim")
    housekeep_until_compacted(store, path)
    compacted = (path / "data.mdb").stat().st_ino
    for _ in range(5):
        store._housekeep()
    assert (path / "data.mdb").stat().st_ino == compacted


def test_what_was_set_aside_as_damaged_leaves_with_the_erased(store, path):
    (path / "damaged-data.mdb").write_bytes(b"of the victim")
    store.erase("victim")
    housekeep_until_compacted(store, path)
    assert b"victim" not in on_disk(path)


def test_batch_read_before_a_compaction_is_recorded_after_it(store, path):
    score(store, events(20, seed=1))
    batch = events(20, seed=2)
    fetched = store.fetch(batch)
    store.erase("nobody")
    housekeep_until_compacted(store, path)
    assert commit(store, batch, fetched) == []
    assert_windows_are_the_logs(store)


def test_erasure_that_a_process_left_unfinished_is_finished_by_the_next_one(path, monkeypatch):
    monkeypatch.setattr(erasure, "_ENTRIES_PER_ROUND", 10)
    first = open_quiet(path)
    score(first, VICTIM)
    score(first, events(50, seed=1))
    first.erase("victim")
    first._housekeep()
    assert 50 < len(first.read_log()) < 70
    first.close()
    second = open_quiet(path)
    assert second.find("victims-19") is None
    housekeep_until_compacted(second, path)
    assert len(second.read_log()) == 50
    assert b"victim" not in on_disk(path)
    second.close()


@pytest.mark.parametrize("killed_in", ["sync", "replace"])
def test_compaction_of_a_process_that_was_killed_is_done_by_the_next_one_and_leaves_no_copy(path, killed_in):
    with StoreProcess.start(path, housekeeping_s=3600.0, compact_after_s=0.0) as first:
        first.do(partial(score, batch=VICTIM))
        first.do(partial(score, batch=events(50, seed=1)))
        first.do(lambda store: store.erase("victim"))
        first.do(lambda store: store._housekeep())
        first.begin(partial(compact_and_be_killed, killed_in=killed_in))
        assert first.exit_code() == -signal.SIGKILL
    (left,) = path.glob("compacting-*/data.mdb")
    left.write_bytes(b"an earlier copy, of the victim too")
    store = open_quiet(path)
    assert len(store.read_log()) == 50
    housekeep_until_compacted(store, path)
    assert b"victim" not in on_disk(path)
    assert {file.name for file in path.iterdir()} == {"data.mdb", "lock.mdb"}
    assert len(store.read_log()) == 50
    score(store, events(50, seed=2))
    store.close()


def compact_and_be_killed(store: EmbeddedStore, killed_in: str) -> None:
    def be_killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if killed_in == "sync":
        original = erasure._copy
        erasure._copy = lambda *arguments: (original(*arguments), be_killed())
    else:
        erasure.os = type("os", (), {"replace": be_killed})
    store._housekeep()


def test_compaction_waits_while_another_process_opens_or_compacts(store, path, caplog):
    score(store, VICTIM)
    store.erase("victim")
    housekeep_until(store, lambda: not erasures(store))
    with held(path):
        store._housekeep()
    assert b"victim" in on_disk(path)
    assert "failed" not in caplog.text
    housekeep_until_compacted(store, path)
    assert b"victim" not in on_disk(path)


def test_copy_that_fails_leaves_the_store_as_it_was(store, path, monkeypatch):
    score(store, VICTIM)
    score(store, events(50, seed=1))
    store.erase("victim")
    housekeep_until(store, lambda: not erasures(store))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_copy", fail)
        assert event_of(store._housekeep) == "error"
        store._housekeep()  # not at once again: copying holds the store's lock
    store._erasure._not_before_s = 0.0
    assert {file.name for file in path.iterdir()} == {"data.mdb", "lock.mdb"}
    score(store, events(50, seed=2))
    housekeep_until_compacted(store, path)
    assert len(store.read_log()) == 100
