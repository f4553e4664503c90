"""Never lost, never twice: several processes on one store, killed and paused, against a replay of the log.

Online equals offline through the real store, out-of-order arrivals included: on generated transactions, and on 100 000
of the handbook's.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from serve.features.embedded import EmbeddedStore
from serve.features.store import Events, Fetched, StoreFailed
from serve.features.windows import to_ten_thousandths
from tests.unit.features.store_cases import (
    NOW_S,
    StoreProcess,
    assert_same_windows,
    assert_windows_are_the_logs,
    batches,
    commit,
    decision_of,
    event_of,
    events,
    events_of,
    joined,
    logged,
    offline,
    open_store,
    part_of,
    score,
)

DAY_S = 86_400
NOBODY = 65534
DATA_ROOT = Path(os.environ.get("HEADROOM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
TRANSACTIONS = DATA_ROOT / "fraud" / "handbook_transactions" / "transactions.parquet"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    one = open_store(path)
    yield one
    one.close()


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


# Online equals offline.


def out_of_order(event_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order of arrival: a fifth comes up to 30 hours late, six more than windows wait."""
    delay_s = np.where(rng.random(len(event_s)) < 0.2, rng.integers(0, 30 * 3600, len(event_s)), 0)
    return np.argsort(event_s + delay_s, kind="stable")


def synthetic(num_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    customer = np.where(rng.random(num_rows) < 0.1, 0, rng.integers(0, 40, num_rows))
    event_s = NOW_S + np.sort(rng.integers(0, 40 * DAY_S, num_rows) // 7 * 7)
    return customer, rng.integers(0, 60, num_rows), event_s, rng.integers(1, 10**7, num_rows)


def handbook(num_rows: int) -> tuple[np.ndarray, ...]:
    """The lowest customer numbers' transactions over the whole period, on few terminals: all windows roll."""
    import pandas as pd

    table = pd.read_parquet(TRANSACTIONS, columns=["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT"])
    lowest = table.sort_values("CUSTOMER_ID", kind="stable").head(num_rows).sort_values("TX_DATETIME", kind="stable")
    event_s = lowest["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    amount_e4 = to_ten_thousandths(lowest["TX_AMOUNT"].to_numpy())
    return lowest["CUSTOMER_ID"].to_numpy(), lowest["TERMINAL_ID"].to_numpy() % 500, event_s, amount_e4


def arrivals(columns: tuple[np.ndarray, ...], rng: np.random.Generator) -> Events:
    customer, terminal, event_s, amount_e4 = (column[out_of_order(columns[2], rng)] for column in columns)
    ids = [f"transaction {row}" for row in range(len(event_s))]
    return Events(ids, [f"c{n}" for n in customer], [f"t{n}" for n in terminal], event_s, amount_e4)


def fetch_and_commit(store: EmbeddedStore, batch: Events) -> Fetched:
    fetched = store.fetch(batch)
    assert commit(store, batch, fetched) == []
    return fetched


def online(path: Path, everything: Events, rng: np.random.Generator) -> list[Fetched]:
    """Two processes take turns; in the middle one is closed and opened again, and the other one is killed."""
    quiet = {"housekeeping_s": 3600.0}  # so that no key is swept
    store, other = open_store(path, **quiet), StoreProcess.start(path, **quiet)
    fetched, num_rows, is_middle_over = [], len(everything.event_s), False
    for turn, rows in enumerate(batches(num_rows, rng)):
        if not is_middle_over and rows.start > num_rows // 2:
            is_middle_over = True
            store.close()
            other.kill()
            store, other = open_store(path, **quiet), StoreProcess.start(path, **quiet)
        batch = part_of(everything, rows)
        is_ours = turn % 2 == 0
        fetched.append(fetch_and_commit(store, batch) if is_ours else other.do(partial(fetch_and_commit, batch=batch)))
    assert_windows_are_the_logs(store)
    store.close()
    other.kill()
    return fetched


def assert_online_is_offline(path: Path, everything: Events, rng: np.random.Generator) -> None:
    seen = online(path, everything, rng)
    customer, terminal = offline(everything)
    assert customer.is_late.any()
    assert_same_windows(joined([one.customer for one in seen]), customer)
    assert_same_windows(joined([one.terminal for one in seen]), terminal)


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_through_the_store_equal_the_backfill_on_generated_transactions(path, seed):
    rng = np.random.default_rng(seed)
    assert_online_is_offline(path, arrivals(synthetic(6_000, rng), rng), rng)


@pytest.mark.data
@pytest.mark.skipif(not TRANSACTIONS.exists(), reason=f"no data set at {TRANSACTIONS}; set HEADROOM_DATA")
def test_windows_through_the_store_equal_the_backfill_on_100_000_of_the_handbooks_transactions(path):
    rng = np.random.default_rng(11)
    assert_online_is_offline(path, arrivals(handbook(100_000), rng), rng)
