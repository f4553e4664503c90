"""Erasing and compacting while other processes have the store open: they go on in the new file, and lose nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from serve.features.embedded import EmbeddedStore
from serve.features.store import StoreFailed
from tests.unit.features.store_cases import (
    NOW_S,
    StoreProcess,
    events,
    events_of,
    logged,
    on_disk,
    open_store,
    replayed_states,
    score,
    window_states,
)

QUIET = {"housekeeping_s": 3600.0, "compact_after_s": 0.0}


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    one = open_store(path, **QUIET)
    yield one
    one.close()


def victim(number: int):
    """At a terminal of its own, whose windows stay when the log has forgotten why."""
    return events_of(*((f"victims {number} {n}", f"victim {number}", "victims' t", NOW_S, 1) for n in range(20)))


def erase_and_compact(store: EmbeddedStore, customer_id: str) -> None:
    """The search, then the copy."""
    store.erase(customer_id)
    for _ in range(2):
        store._housekeep()


def outcome_of(work: Callable[[], object]) -> str:
    """What failed; "" where nothing did."""
    try:
        work()
    except StoreFailed as failure:
        return failure.event
    return ""


def failure_of(store: EmbeddedStore, batch) -> str:
    return outcome_of(lambda: score(store, batch))


def test_process_that_has_the_store_open_fails_once_then_records_into_the_new_file(path, store):
    with StoreProcess.start(path, **QUIET) as other:
        other.do(partial(score, batch=victim(0)))
        other.do(partial(score, batch=events(50, seed=1)))
        erase_and_compact(store, "victim 0")
        assert other.do(partial(failure_of, batch=events(50, seed=2))) == "replaced"
        assert other.do(partial(failure_of, batch=events(50, seed=2))) == ""
        assert len(other.do(lambda theirs: theirs.fetch(events(50, seed=1)).stored)) == 50
    assert set(logged(store).transaction_ids) == {f"{seed}-{n}" for seed in (1, 2) for n in range(50)}
    assert b"victim 0" not in on_disk(path)


def test_process_that_checks_in_time_does_not_notice(path, store):
    with StoreProcess.start(path, **QUIET) as other:
        other.do(partial(score, batch=victim(0)))
        erase_and_compact(store, "victim 0")
        other.do(lambda theirs: theirs.check())
        assert other.do(partial(failure_of, batch=events(50, seed=2))) == ""
    assert len(store.read_log()) == 50


def wait_for(is_so) -> None:
    until_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (score, "replaced"),  # and only this once
        (lambda store, batch: store.label({"1-1": True}), ""),
        (lambda store, batch: store.erase("c1"), ""),
    ],
    ids=["commit", "label", "erase"],
)
def test_call_that_waits_for_the_lock_while_the_store_is_compacted(path, store, call, outcome, monkeypatch):
    """It has found its file in place, and finds it replaced when it has the lock: labels and erasures begin again."""
    score(store, events(50, seed=1))
    with StoreProcess.start(path, **QUIET) as other:
        other.do(partial(score, batch=victim(0)))
        other.do(lambda theirs: theirs.erase("victim 0"))
        other.do(lambda theirs: theirs._housekeep())
        other.begin(pause_and_compact)
        wait_for((path / "compacting").exists)
        failures: list[str] = []
        has_checked, original = threading.Event(), store._current

        def current() -> object:
            database = original()
            has_checked.set()
            return database

        monkeypatch.setattr(store, "_current", current)
        waiting = threading.Thread(target=lambda: failures.append(outcome_of(lambda: call(store, events(50, seed=2)))))
        waiting.start()
        assert has_checked.wait(60)
        (path / "compacting").unlink()
        other.result()
        waiting.join(60)
        assert failures == [outcome]
        call(store, events(50, seed=2))
        assert b"victim 0" not in on_disk(path)


def pause_and_compact(store: EmbeddedStore) -> None:
    """Compacts, and before the new file is in place waits until somebody has removed the sign that it does."""
    from serve.features import erasure

    original, sign = erasure._copy, store.path / "compacting"

    def copy(*arguments) -> None:
        sign.touch()
        while sign.exists():
            time.sleep(0.001)
        original(*arguments)

    erasure._copy = copy
    store._housekeep()


def score_until(store: EmbeddedStore, report: Path, stop: Path, prefix: str) -> dict[str, int]:
    """Writes the transactions it has answered for, a line a batch; gives how often the store failed, and how."""
    failures: dict[str, int] = {}
    with report.open("a") as file:
        for number in range(1_000_000):
            if stop.exists():
                return failures
            batch = events(16, seed=number, prefix=prefix)
            failure = failure_of(store, batch)
            if failure:
                failures[failure] = failures.get(failure, 0) + 1
            else:
                file.write(",".join(batch.transaction_ids) + "\n")
                file.flush()
    return failures


def test_processes_that_go_on_scoring_lose_nothing_though_the_store_is_compacted_again_and_again(path, store, tmp_path):
    num_erased = 20
    others = [StoreProcess.start(path, **QUIET) for _ in range(2)]
    reports = [tmp_path / "first", tmp_path / "second"]
    for other, report in zip(others, reports, strict=True):
        other.begin(partial(score_until, report=report, stop=tmp_path / "stop", prefix=f"{report.name}:"))
    for number in range(num_erased):
        score_at_last(store, victim(number))
        before = [num_lines(report) for report in reports]
        erase_and_compact(store, f"victim {number}")
        wait_for(lambda before=before: all(num_lines(report) > n for report, n in zip(reports, before, strict=True)))
    (tmp_path / "stop").touch()
    failures = [other.result() for other in others]
    assert all(set(one) == {"replaced"} and one["replaced"] <= num_erased for one in failures)
    answered = [name for report in reports for line in report.read_text().splitlines() for name in line.split(",")]
    log = logged(store)
    assert sorted(log.transaction_ids) == sorted(answered)
    states = window_states(store)
    del states[b"tvictims' t"]
    assert states == replayed_states(log)
    assert b"victim " not in on_disk(path)
    for other in others:
        other.kill()


def num_lines(report: Path) -> int:
    return report.read_text().count("\n") if report.exists() else 0


def score_at_last(store: EmbeddedStore, batch) -> None:
    """The housekeeping of this process replaced the file it has open, so that it is the current one."""
    assert failure_of(store, batch) == ""


def test_two_processes_that_compact_at_once_do_it_one_after_the_other(path, store):
    score(store, events(50, seed=1))
    with StoreProcess.start(path, housekeeping_s=0.001, compact_after_s=0.0) as other:
        for number in range(10):
            while failure_of(store, victim(number)):
                store.check()
            while erase_failure_of(store, f"victim {number}"):
                store.check()
            for _ in range(3):
                store._housekeep()
            wait_for(lambda: b"victim " not in on_disk(path))
        assert other.do(lambda theirs: (theirs.check(), len(theirs.read_log()))[1]) == 50
    store.check()
    assert len(store.read_log()) == 50
    assert not list(path.glob("compacting-*"))


def erase_failure_of(store: EmbeddedStore, customer_id: str) -> str:
    try:
        store.erase(customer_id)
    except StoreFailed as failure:
        return failure.event
    return ""
