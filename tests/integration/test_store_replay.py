"""Never lost, never twice: several processes on one store, killed and paused, against a replay of the log."""

from __future__ import annotations

import os
import random
import resource
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from serve.features.embedded import EmbeddedStore
from serve.features.store import StoreFailed
from tests.unit.features.store_cases import (
    NOW_S,
    StoreProcess,
    assert_windows_are_the_logs,
    commit,
    decision_of,
    event_of,
    events,
    events_of,
    logged,
    open_store,
    part_of,
    score,
)

NOBODY = 65534


def soon_ns(milliseconds: int = 20) -> int:
    return time.monotonic_ns() + milliseconds * 1_000_000


# Two processes at once.


def score_overlapping(store: EmbeddedStore, process: str, num_batches: int) -> dict[str, bytes]:
    """Batches that other processes score too; gives what this process answered per transaction."""
    rng = np.random.default_rng(os.getpid())
    answered: dict[str, bytes] = {}
    for seed in range(num_batches):
        everything = events(64, seed=seed)
        rows = slice(int(rng.integers(0, 32)), int(rng.integers(33, 65)))
        batch = part_of(everything, rows)
        decisions = [decision_of(name, process) for name in batch.transaction_ids]
        for one in score(store, batch, process=process):
            decisions[one.row] = one.decision
        answered.update(zip(batch.transaction_ids, decisions, strict=True))
    return answered


def test_processes_that_score_the_same_transactions_at_once_agree_on_every_decision(path, store):
    names = ("first", "second", "third")
    processes = [StoreProcess.start(path) for _ in names]
    for name, process in zip(names, processes, strict=True):
        process.begin(partial(score_overlapping, process=name, num_batches=120))
    answers = [process.result() for process in processes]
    recorded = {entry.transaction_id: entry.decision for _, entry in store.read_log()}
    for answer in answers:
        assert {name: recorded[name] for name in answer} == answer
    assert len({decision[:5] for decision in recorded.values()}) == 3  # each was first sometimes
    assert_windows_are_the_logs(store)
    for process in processes:
        process.kill()


many_keys = partial(events, num_customers=2_000, num_terminals=2_000)


def score_until_killed(store: EmbeddedStore, report: Path, seed: int) -> None:
    """Writes the transactions it has answered for, a line a batch, after the store took them."""
    rng = random.Random(seed)
    with report.open("a") as file:
        for number in range(1_000_000):
            batch = many_keys(rng.choice([1, 8, 64]), seed=number, prefix=f"{seed}:")
            score(store, batch)
            file.write(",".join(batch.transaction_ids) + "\n")
            file.flush()


def test_processes_killed_at_any_moment_lose_nothing_that_was_answered_and_block_nobody(path, tmp_path):
    """Also while they hold the lock, and while the others wait for it."""
    num_kills = 30
    rng = random.Random(7)
    survivor = StoreProcess.start(path)
    reports = []
    survivor.begin(partial(score_for, report=tmp_path / "survivor", stop=tmp_path / "stop"))
    for kill in range(num_kills):
        reports.append(tmp_path / f"killed-{kill}")
        victim = StoreProcess.start(path)
        victim.begin(partial(score_until_killed, report=reports[-1], seed=kill))
        wait_for_lines(reports[-1], 2)
        time.sleep(rng.uniform(0, 0.02))  # a random moment is what is tested
        victim.kill()
    num_before = len((tmp_path / "survivor").read_text().splitlines())
    wait_for_lines(tmp_path / "survivor", num_before + 20)
    (tmp_path / "stop").touch()
    survivor.result()
    store = open_store(path)
    answered = {name for report in [*reports, tmp_path / "survivor"] for name in whole_lines(report)}
    assert answered <= set(logged(store).transaction_ids)
    assert_windows_are_the_logs(store)
    score(store, events(64, seed=1, prefix="after"))
    assert_windows_are_the_logs(store)
    store.close()
    survivor.kill()


def score_for(store: EmbeddedStore, report: Path, stop: Path) -> None:
    with report.open("a") as file:
        for number in range(1_000_000):
            if stop.exists():
                return
            batch = many_keys(16, seed=number, prefix="survivor:")
            score(store, batch)
            file.write(",".join(batch.transaction_ids) + "\n")
            file.flush()


def whole_lines(report: Path) -> list[str]:
    text = report.read_text()
    return [name for line in text[: text.rfind("\n") + 1].splitlines() for name in line.split(",")]


def wait_for_lines(report: Path, num_lines: int) -> None:
    until_s = time.monotonic() + 60
    while not report.exists() or report.read_text().count("\n") < num_lines:
        assert time.monotonic() < until_s, f"{report.name} does not get {num_lines} lines"
        time.sleep(0.001)


# Another process holds the lock.


@pytest.mark.parametrize("ending", ["resumed", "killed"])
def test_commit_behind_a_paused_process_is_late_the_next_busy_and_all_is_well_after(path, store, ending):
    score(store, events_of(("known", "c", "t", NOW_S, 1)))
    holder = StoreProcess.start(path)
    holder.pause_in_a_write()
    late, next_ = events_of(("late", "c", "t", NOW_S, 1)), events_of(("next", "c", "t", NOW_S, 1))
    fetched = store.fetch(late)
    assert fetched.customer.totals[0, 0] == 1
    deadline_ns = soon_ns()
    assert event_of(lambda: commit(store, late, fetched, deadline_ns=deadline_ns)) == "late"
    assert deadline_ns <= time.monotonic_ns() < deadline_ns + 500_000_000
    began_ns = time.monotonic_ns()
    assert event_of(lambda: score(store, next_)) == "busy"
    assert time.monotonic_ns() - began_ns < 500_000_000
    retry = store.fetch(late)
    assert retry.stored == []
    store.check()
    holder.resume() if ending == "resumed" else holder.kill()
    until_recorded(store, "late")
    assert [one.decision for one in commit(store, late, retry, process="retry")] == [decision_of("late")]
    score(store, next_)
    assert logged(store).transaction_ids == ("known", "late", "next")
    assert_windows_are_the_logs(store)
    holder.kill()


def until_recorded(store: EmbeddedStore, name: str) -> None:
    """Waits until the late commit has landed, and the writer is free."""
    until_s = time.monotonic() + 60
    while store._writer._last.done.locked() or name not in logged(store).transaction_ids:
        assert time.monotonic() < until_s
        time.sleep(0.001)


def test_store_opens_reads_and_closes_while_another_process_is_paused_in_a_write(path):
    first = open_store(path)
    score(first, events_of(("a", "c", "t", NOW_S, 1)))
    first.close()
    with StoreProcess.start(path) as holder:
        holder.pause_in_a_write()
        store = open_store(path, housekeeping_s=0.001)
        assert store.fetch(events_of(("b", "c", "t", NOW_S, 1))).customer.totals[0, 0] == 1
        store.close()


def test_two_processes_waiting_behind_a_third_count_a_transaction_of_both_once(path, store):
    other, holder = StoreProcess.start(path), StoreProcess.start(path)
    holder.pause_in_a_write()
    batch = events(32, seed=1)
    other.begin(partial(score, batch=batch, process="other"))
    waiting = threading.Thread(target=score, args=(store, batch), kwargs={"process": "ours"})
    waiting.start()
    holder.resume()
    waiting.join(60)
    other.result()
    assert len(store.read_log()) == 32
    assert_windows_are_the_logs(store)
    for process in (other, holder):
        process.kill()


# What happens to the file under two of them.


def test_damaged_file_is_moved_away_once_though_two_processes_find_it_damaged(path, store):
    """The second finds another file in its place, and must not move that one."""
    score(store, events(500, seed=1, num_customers=400))
    with StoreProcess.start(path) as other:
        damage(path / "data.mdb")
        assert event_of(lambda: store.fetch(events(10, seed=2))) == "damaged"
        score(store, events(10, seed=2))
        assert other.do(failure_of) == "damaged"
        assert other.do(lambda store: len(store.read_log())) == 10
    assert len(store.read_log()) == 10
    assert_windows_are_the_logs(store)


def damage(data: Path) -> None:
    """Zeros over all but the meta pages, in place."""
    with data.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(bytes(data.stat().st_size - 2 * 4096))


def test_file_that_a_process_with_a_higher_bound_let_grow_is_opened_anew(path):
    store = open_store(path, max_bytes=1 << 20, housekeeping_s=3600)
    batch = events(10, seed=1)
    fetched = store.fetch(batch)
    with StoreProcess.start(path, max_bytes=64 << 20) as other:
        other.do(partial(score_seeds, seeds=range(2, 100)))
        assert event_of(lambda: commit(store, batch, fetched)) == "replaced"
        store.check()
        assert store.fetch(events(64, seed=99)).stored
        assert score(store, batch) == []
        assert len(other.do(lambda store: store.fetch(events(10, seed=1)).stored)) == 10
    store.close()


# What no process survives, and what the disk refuses.


def test_truncating_the_open_file_kills_the_process_and_a_new_one_begins_anew(path):
    with StoreProcess.start(path) as process:
        process.do(partial(score_seeds, seeds=range(40)))
        os.truncate(path / "data.mdb", 2 * 4096)
        process.begin(partial(score_seeds, seeds=range(40, 80)))
        assert process.exit_code() == -signal.SIGBUS
    store = open_store(path)
    score(store, events(64, seed=1))
    assert (path / "damaged-data.mdb").exists()
    assert_windows_are_the_logs(store)
    store.close()


def score_seeds(store: EmbeddedStore, seeds: range) -> list[str]:
    """How the store failed, batch by batch; empty: it did not."""
    failures = []
    for seed in seeds:
        try:
            score(store, events(64, seed=seed, num_customers=400, num_terminals=400))
            failures.append("")
        except StoreFailed as failure:
            failures.append(failure.event)
    return failures


def limit_file_size(store: EmbeddedStore, num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def test_full_disk_fails_as_full_still_reads_and_recovers_by_itself_when_there_is_room(path, store):
    """A limit on the size of files stands for the disk: both refuse the write, with different numbers."""
    with StoreProcess.start(path) as process:
        assert set(process.do(partial(score_seeds, seeds=range(10)))) == {""}
        process.do(partial(limit_file_size, num_bytes=(path / "data.mdb").stat().st_size))
        failures = process.do(partial(score_seeds, seeds=range(10, 60)))
        assert failures[-1] == "full"
        assert set(failures) <= {"", "full"}
        assert process.do(lambda store: len(store.fetch(events(64, seed=0)).stored)) == 64
        assert_windows_are_the_logs(store)
        process.do(partial(limit_file_size, num_bytes=resource.RLIM_INFINITY))
        assert set(process.do(partial(score_seeds, seeds=range(60, 70)))) == {""}
    assert_windows_are_the_logs(store)
    assert not (path / "damaged-data.mdb").exists()


def test_folder_that_cannot_be_entered_is_unavailable_until_it_can():
    """Root may enter any folder, so that its process becomes somebody else's first."""
    with tempfile.TemporaryDirectory() as parent, StoreProcess.start(Path(parent) / "features") as process:
        if os.geteuid() == 0:
            process.do(become_nobody)
        os.chmod(parent, 0)
        assert process.do(failure_after_checks) == "unavailable"
        os.chmod(parent, 0o711)
        if os.geteuid() == 0:
            for path in (Path(parent) / "features", *(Path(parent) / "features").iterdir()):
                os.chown(path, NOBODY, NOBODY)
        assert process.do(failure_after_checks) == ""


def become_nobody(store: EmbeddedStore) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def failure_after_checks(store: EmbeddedStore) -> str:
    """A file that could not be opened is let go at one check, and opened at the next."""
    store.check()
    store.check()
    return failure_of(store)


def failure_of(store: EmbeddedStore) -> str:
    try:
        score(store, events(1, seed=1))
    except StoreFailed as failure:
        return failure.event
    return ""
