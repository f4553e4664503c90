"""Several real processes as one server: merging, killing, folding."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.observability.families import (
    BUDGET,
    CONNECTIONS,
    IN_FLIGHT,
    QUEUE_ITEMS,
    REQUEST_DURATION,
    REQUEST_WINDOW,
    REQUESTS,
    STORE_STATE,
)
from serve.observability.folder import RETIRED, MetricsFolder, Snapshot
from serve.observability.latency import (
    window_counts,
)
from serve.observability.metrics import Metrics
from serve.observability.shared import Kind, Series, encode_retired

StartReplica = Callable[[], Any]
OK = ("http", "/v1/fraud/score", "200")


def record_some(metrics: Metrics) -> None:
    metrics.count_requests(*OK, n=10)
    metrics.in_flight("http")[0] += 3
    metrics.set_connections("http", 2)
    metrics.set_store_state("bytes_used", 100.0)
    pipeline = metrics.pipeline("fraud", ("score",), budget_ms=50, stage_budgets_ms={"score": 10})
    pipeline.observe_requests(np.array([1_000_000, 2_000_000, 30_000_000]))
    pipeline.set_queue(5)


def snapshot_of(run_dir: Path) -> Snapshot:
    return MetricsFolder(run_dir / "metrics").read(time.monotonic_ns())


def num_requests(run_dir: Path) -> float:
    return snapshot_of(run_dir).values_of(REQUESTS.name).get(OK, 0.0)


def process_files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "metrics").glob("*-*.mmap"))


def test_any_process_sees_what_all_record(tmp_path: Path, start_replica: StartReplica) -> None:
    replicas = [start_replica(), start_replica()]
    for replica in replicas:
        replica.do(record_some)
    for snapshot in (snapshot_of(tmp_path), Metrics.open(tmp_path, version="test").snapshot()):
        assert snapshot.values_of(REQUESTS.name) == {OK: 20}
        assert snapshot.values_of(IN_FLIGHT.name) == {("http",): 6}
        assert snapshot.values_of(CONNECTIONS.name) == {("http",): 4}
        assert snapshot.values_of(QUEUE_ITEMS.name) == {("fraud",): 10}
        assert snapshot.values_of(STORE_STATE.name) == {("bytes_used",): 100}
        assert snapshot.values_of(BUDGET.name) == {("fraud", "total"): 0.05, ("fraud", "score"): 0.01}
        durations = snapshot.series[REQUEST_DURATION.series("fraud")]
        assert durations[1:].sum() == 6
        assert durations.view(np.float64)[0] == pytest.approx(0.066)
        assert window_counts(snapshot.series[REQUEST_WINDOW.series("fraud")], snapshot.taken_ns).sum() == 6


def test_a_killed_process_leaves_its_counters_and_takes_its_gauges(tmp_path: Path, start_replica: StartReplica) -> None:
    killed, kept = start_replica(), start_replica()
    killed.do(record_some)
    kept.do(record_some)
    killed.kill()
    snapshot = snapshot_of(tmp_path)
    assert snapshot.values_of(REQUESTS.name) == {OK: 20}
    assert snapshot.values_of(IN_FLIGHT.name) == {("http",): 3}
    assert snapshot.values_of(QUEUE_ITEMS.name) == {("fraud",): 5}


def count_for_ever(metrics: Metrics) -> Iterator[int]:
    for n in itertools.count(1):
        metrics.count_requests(*OK)
        yield n


def count_two_thousand(metrics: Metrics) -> None:
    for _ in range(2_000):
        metrics.count_requests(*OK)


def count_three_thousand_endpoints(metrics: Metrics) -> None:
    for n in range(3_000):
        metrics.count_requests("http", f"/{n}", "200", n)


def test_a_process_killed_while_it_records_loses_nothing_it_had_recorded(
    tmp_path: Path, start_replica: StartReplica
) -> None:
    replica = start_replica()
    replica.begin(count_for_ever)
    while replica.result() < 100:
        pass
    replica.kill()
    last = 100
    while replica.pipe.poll():
        try:
            last = replica.pipe.recv()
        except EOFError:
            break
    assert num_requests(tmp_path) in (last, last + 1)


def test_files_of_ended_processes_are_folded_at_the_next_start(tmp_path: Path, start_replica: StartReplica) -> None:
    for _ in range(3):
        replica = start_replica()
        replica.do(record_some)
        replica.kill()
    assert len(process_files(tmp_path)) == 1, "each start folds what was there before"
    metrics = Metrics.open(tmp_path, version="test")
    assert process_files(tmp_path) == [metrics._file.name]
    snapshot = metrics.snapshot()
    assert snapshot.values_of(REQUESTS.name) == {OK: 30}
    assert snapshot.values_of(IN_FLIGHT.name) == {}
    assert snapshot.series[REQUEST_DURATION.series("fraud")].view(np.float64)[0] == pytest.approx(0.099)
    recent = window_counts(snapshot.series[REQUEST_WINDOW.series("fraud")], snapshot.taken_ns)
    assert recent.sum() == 9, "the last minute's percentiles survive a restart"


def test_a_fold_that_was_killed_before_it_removed_files_counts_nothing_twice(
    tmp_path: Path, start_replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = start_replica()
    replica.do(record_some)
    replica.kill()
    with monkeypatch.context() as patched:
        patched.setattr(MetricsFolder, "_remove", lambda self, name: None)
        MetricsFolder(tmp_path / "metrics").fold()
    assert len(process_files(tmp_path)) == 1
    assert num_requests(tmp_path) == 10
    second = start_replica()  # folds: finds one to remove, none to take in
    second.do(record_some)
    assert num_requests(tmp_path) == 20
    second.kill()
    MetricsFolder(tmp_path / "metrics").fold()
    assert (process_files(tmp_path), num_requests(tmp_path)) == ([], 20)


def test_what_a_process_records_just_before_it_ends_is_folded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    metrics.count_requests(*OK)

    def ends_after_one_more(_: object) -> bool:
        metrics.count_requests(*OK)
        monkeypatch.undo()
        metrics.close()
        return False

    monkeypatch.setattr("serve.observability.folder.is_alive", ends_after_one_more)
    MetricsFolder(tmp_path / "metrics").fold()
    assert (process_files(tmp_path), num_requests(tmp_path)) == ([], 2)


def test_a_fold_leaves_the_files_alone_while_another_folds(tmp_path: Path, start_replica: StartReplica) -> None:
    replica = start_replica()
    replica.do(record_some)
    replica.kill()
    folder = MetricsFolder(tmp_path / "metrics")
    with folder._try_lock() as is_locked:
        assert is_locked
        folder.fold()
        assert len(process_files(tmp_path)) == 1
    folder.fold()
    assert process_files(tmp_path) == []


def read_until(stop: Event, run_dir: Path, results: Any) -> None:
    """Reads without pause; reports (number of reads, the first decrease or None)."""
    folder, highest, num_reads, decrease = MetricsFolder(run_dir / "metrics"), 0.0, 0, None
    while not stop.is_set() and decrease is None:
        seen = folder.read(time.monotonic_ns()).values_of(REQUESTS.name).get(OK, 0.0)
        if seen < highest:
            decrease = (highest, seen)
        highest, num_reads = seen, num_reads + 1
    results.put((num_reads, decrease))


def fold_until(stop: Event, run_dir: Path) -> None:
    folder = MetricsFolder(run_dir / "metrics")
    while not stop.is_set():
        folder.fold()


def test_a_counter_never_goes_down_while_processes_record_die_and_are_folded(
    tmp_path: Path, start_replica: StartReplica
) -> None:
    start_replica().kill()
    context = multiprocessing.get_context("fork")
    stop, results = context.Event(), context.Queue()
    workers = [context.Process(target=read_until, args=(stop, tmp_path, results)) for _ in range(2)]
    workers += [context.Process(target=fold_until, args=(stop, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(12):
        pair = [start_replica(), start_replica()]
        for replica in pair:
            replica.begin(count_two_thousand)
        for replica in pair:
            replica.result()
            replica.kill()
    stop.set()
    outcomes = [results.get(timeout=60) for _ in range(2)]
    for worker in workers:
        worker.join(60)
    assert [decrease for _, decrease in outcomes] == [None, None]
    assert min(num_reads for num_reads, _ in outcomes) >= 5
    MetricsFolder(tmp_path / "metrics").fold()
    assert (process_files(tmp_path), num_requests(tmp_path)) == ([], 48_000)


def test_a_reader_follows_a_file_to_which_another_process_adds_series(
    tmp_path: Path, start_replica: StartReplica, caplog: pytest.LogCaptureFixture
) -> None:
    replica = start_replica()
    replica.begin(count_three_thousand_endpoints)
    folder, num_seen = MetricsFolder(tmp_path / "metrics"), 0
    while not replica.pipe.poll() or num_seen == 0:
        values = folder.read(time.monotonic_ns()).values_of(REQUESTS.name)
        assert len(values) >= num_seen
        num_seen = len(values)
        # Only the newest series may still wait for its first value.
        newest = num_seen - 1
        assert {labels: value for labels, value in values.items() if labels[1] != f"/{newest}"} == {
            ("http", f"/{n}", "200"): n for n in range(newest)
        }
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("77-1.mmap", b"not a metrics file, but long enough to hold a header of sixty-four bytes"),
        ("77-1.mmap", b"HDRMTR01"),
        ("77-1.mmap", encode_retired(0, [], {Series(Kind.COUNTER, "x", (), 1): np.zeros(1, np.int64)}, boot=1)[:-1]),
        ("notes.txt", b"left here by somebody"),
        (RETIRED, b"overwritten"),
    ],
)
def test_a_damaged_or_foreign_file_is_skipped_with_one_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    metrics.count_requests(*OK)
    (tmp_path / "metrics" / name).write_bytes(content)
    for _ in range(3):
        assert metrics.snapshot().values_of(REQUESTS.name) == {OK: 1}
    assert [name in record.getMessage() for record in caplog.records] == [True]


def test_what_is_no_regular_file_is_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    folder = tmp_path / "metrics"
    os.mkfifo(folder / "1-1.mmap")
    (folder / "1-2.mmap").mkdir()
    (folder / "1-3.mmap").symlink_to(folder / str(metrics._file.name))
    metrics.count_requests(*OK)
    assert metrics.snapshot().values_of(REQUESTS.name) == {OK: 1}


def test_a_file_that_is_just_being_made_is_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    header = (tmp_path / "metrics" / str(metrics._file.name)).read_bytes()[:48] + bytes(16)
    for beginning in (b"", header):
        (tmp_path / "metrics" / "77-1.mmap").write_bytes(beginning)
        metrics.snapshot()
    assert caplog.records == []


def test_a_closed_process_no_longer_has_gauges_though_it_lives(tmp_path: Path) -> None:
    metrics = Metrics.open(tmp_path, version="test")
    record_some(metrics)
    metrics.close()
    assert snapshot_of(tmp_path).values_of(IN_FLIGHT.name) == {}
    assert num_requests(tmp_path) == 10


def test_an_empty_or_missing_folder_has_no_series(tmp_path: Path) -> None:
    assert snapshot_of(tmp_path).series == {}
