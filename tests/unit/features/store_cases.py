"""What the tests of the feature store share: transactions, a replay of the log, and a store in another process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from kernels import profiles
from kernels import windows as kernel
from serve.features import records
from serve.features.backfill import backfill
from serve.features.batch import window_keys
from serve.features.embedded import EmbeddedStore
from serve.features.redis import RedisStore
from serve.features.store import FRAUD, Events, Fetched, Stored, StoreFailed
from serve.features.windows import Windows, advance, mark

NOW_S = 1_700_000_000
NEVER_NS = 1 << 62
MAX_BYTES = 1 << 30

open_store = partial(EmbeddedStore, max_bytes=MAX_BYTES)


def events_of(*rows: tuple[str, str, str, int, int], place: Sequence[tuple[float, float]] | None = None) -> Events:
    """Columns of (transaction, customer, terminal, second, amount in ten-thousandths); of unknown place, if not given."""
    ids, customers, terminals, event_s, amount_e4 = zip(*rows, strict=True)
    places = np.full((len(rows), 2), np.nan) if place is None else np.array(place, np.float64)
    return Events(ids, customers, terminals, np.array(event_s, np.int64), np.array(amount_e4, np.int64), places)


def events(num_rows: int, seed: int, *, num_customers: int = 20, num_terminals: int = 30, prefix: str = "") -> Events:
    """Random transactions of 30 days (nobody is swept), a tenth one customer's, half of a known place; ids differ by
    prefix, seed and row.
    """
    rng = np.random.default_rng(seed)
    customer = np.where(rng.random(num_rows) < 0.1, 0, rng.integers(0, num_customers, num_rows))
    return Events(
        [f"{prefix}{seed}-{row}" for row in range(num_rows)],
        [f"c{number}" for number in customer],
        [f"t{number}" for number in rng.integers(0, num_terminals, num_rows)],
        NOW_S + rng.integers(0, 30 * 86_400, num_rows),
        rng.integers(1, 10**6, num_rows),
        np.where(rng.random((num_rows, 1)) < 0.5, rng.uniform([-90, -180], [90, 180], (num_rows, 2)), np.nan),
    )


def decision_of(transaction_id: str, process: str = "") -> bytes:
    return f"{process}:{transaction_id}".encode().ljust(200)


def score(store: EmbeddedStore, batch: Events, *, process: str = "", deadline_ns: int = NEVER_NS) -> list[Stored]:
    """What the flow does with a batch; gives what was decided before or meanwhile."""
    fetched = store.fetch(batch)
    return [*fetched.stored, *commit(store, batch, fetched, process=process, deadline_ns=deadline_ns)]


def commit(
    store: EmbeddedStore, batch: Events, fetched: Fetched, *, process: str = "", deadline_ns: int = NEVER_NS
) -> list[Stored]:
    decisions: list[bytes | None] = [decision_of(name, process) for name in batch.transaction_ids]
    for one in fetched.stored:
        decisions[one.row] = None
    return store.commit(batch, decisions, fetched, deadline_ns)


def event_of(call: Callable[[], object]) -> str:
    """How the store fails."""
    with pytest.raises(StoreFailed) as failure:
        call()
    return failure.value.event


def totals(store: EmbeddedStore, batch: Events) -> list[int]:
    """How many transactions each row's customer made in the 30 days before."""
    return [int(count) for count in store.fetch(batch).customer.totals[:, 3]]


def window_states(store: EmbeddedStore | RedisStore) -> dict[bytes, bytes]:
    """Every key's state as it is in the store."""
    if isinstance(store, RedisStore):
        names = [name for kind in "ct" for name in store._client().scan_iter(f"{{headroom}}:{kind}:*")]
        values = store._client().mget(names)
        return {n[11:12] + n[13:]: in_order(value[16:]) for n, value in zip(names, values, strict=True)}
    with store._opened().env.begin() as txn, txn.cursor() as cursor:
        cursor.set_range(records.WINDOWS_BEGIN)
        return {key: in_order(value) for key, value in cursor if key < records.WINDOWS_END}


def in_order(state: bytes) -> bytes:
    """The state with its profile's terminals in the order they were last seen; in the file they are in any."""
    words = np.frombuffer(state[: len(state) // 8 * 8], np.int64).copy()
    words[windows_end(words) + profiles.HEAD_WORDS :].sort()
    return words.tobytes() + state[words.nbytes :]


def windows_end(words: np.ndarray) -> int:
    """Where a customer's profile begins."""
    return kernel.HEADER_WORDS + 2 * int(words[2 : kernel.HEADER_WORDS].sum())


def logged(store: EmbeddedStore) -> Events:
    """The log's events, in its order."""
    entries = [entry for _, entry in store.read_log()]
    return events_of(
        *((e.transaction_id, e.customer_id, e.terminal_id, e.event_s, e.amount_e4) for e in entries),
        place=[e.place or (np.nan, np.nan) for e in entries],
    )


def replayed_states(log: Events, frauds: Collection[str] = ()) -> dict[bytes, bytes]:
    """The states that the log's events and labels make, entered anew one after the other."""
    keys = window_keys(log)
    twice = (np.tile(log.event_s, 2), np.tile(log.amount_e4, 2))
    advanced = advance([None] * len(keys.keys), keys.key_of_row, *twice, keys.customers)
    states = dict(zip(keys.keys, advanced.new_states(), strict=True))
    n = len(log.transaction_ids)
    for row, name in enumerate(log.transaction_ids):
        if name in frauds and not advanced.windows.is_late[n + row]:
            key = keys.keys[keys.key_of_row[n + row]]
            states[key] = mark(states[key], int(log.event_s[row]), is_fraud=True)
    return {key: in_order(state) for key, state in states.items()}


def assert_windows_are_the_logs(store: EmbeddedStore) -> None:
    """The file is whole: each event counted once, in the states, as often as it is in the log: once."""
    log = logged(store)
    assert len(set(log.transaction_ids)) == len(log.transaction_ids)
    frauds = {entry.transaction_id for _, entry in store.read_log() if entry.label == FRAUD}
    assert window_states(store) == replayed_states(log, frauds)
    seen = store.fetch(log)
    assert [one.row for one in seen.stored] == list(range(len(log.transaction_ids)))
    assert [one.decision for one in seen.stored] == [entry.decision for _, entry in store.read_log()]


def assert_same_windows(ours: Windows, theirs: Windows) -> None:
    np.testing.assert_array_equal(ours.totals, theirs.totals)
    np.testing.assert_array_equal(ours.since_last_s, theirs.since_last_s)
    np.testing.assert_array_equal(ours.profile, theirs.profile)
    np.testing.assert_array_equal(ours.is_late, theirs.is_late)


def on_disk(path: Path) -> bytes:
    """All that the folder's files hold; read by another process, because a file closed here loses LMDB's locks on it."""
    files = [str(file) for file in sorted(path.rglob("*")) if file.is_file()]
    return subprocess.run(["cat", "--", *files], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout


def offline(batch: Events, is_fraud: np.ndarray | None = None) -> tuple[Windows, Windows]:
    """The customers' and the terminals' windows of events that arrived in this order."""
    result = backfill(
        np.array(batch.customer_ids),
        np.array(batch.terminal_ids),
        batch.event_s,
        batch.amount_e4,
        is_fraud,
        batch.place,
    )
    return result.customer, result.terminal


def joined(parts: list[Windows]) -> Windows:
    return Windows(
        np.concatenate([part.totals for part in parts]),
        np.concatenate([part.since_last_s for part in parts]),
        np.concatenate([part.profile for part in parts]),
        np.concatenate([part.is_late for part in parts]),
    )


def joined_events(parts: Sequence[Events]) -> Events:
    return Events(
        [name for part in parts for name in part.transaction_ids],
        [name for part in parts for name in part.customer_ids],
        [name for part in parts for name in part.terminal_ids],
        np.concatenate([part.event_s for part in parts]),
        np.concatenate([part.amount_e4 for part in parts]),
        np.concatenate([part.place for part in parts]),
    )


def part_of(batch: Events, rows: slice) -> Events:
    return Events(
        batch.transaction_ids[rows], batch.customer_ids[rows], batch.terminal_ids[rows],
        batch.event_s[rows], batch.amount_e4[rows], batch.place[rows],
    )  # fmt: skip


# Children are forked from a process without threads that has loaded and compiled all, so that one needs milliseconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.unit.features.store_warm"])


@dataclass
class StoreProcess:
    """A process with a store of its own; `do` runs a function on it there."""

    process: Any
    pipe: Connection

    @classmethod
    def start(cls, path: Path, **settings: Any) -> StoreProcess:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_serve, args=(path, settings, theirs), daemon=True)
        process.start()
        theirs.close()
        started = cls(process, ours)
        assert started.result() == "open"
        return started

    def __enter__(self) -> StoreProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def do(self, action: Callable[[EmbeddedStore], Any]) -> Any:
        self.begin(action)
        return self.result()

    def begin(self, action: Callable[[EmbeddedStore], Any]) -> None:
        self.pipe.send_bytes(cloudpickle.dumps(action))

    def result(self) -> Any:
        assert self.pipe.poll(60), "the store's process did not answer"
        result = self.pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def pause_in_a_write(self) -> None:
        """Returns when the process has stopped itself while it holds the write lock."""
        self.begin(_stop_in_a_write)
        self._wait_for_state("T")

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()

    def exit_code(self) -> int:
        """Waits for its end; negative: the signal that ended it."""
        self.process.join(60)
        assert self.process.exitcode is not None
        return self.process.exitcode

    def _wait_for_state(self, state: str) -> None:
        until_s = time.monotonic() + 60
        while Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != state:
            assert time.monotonic() < until_s, f"the store's process does not get into state {state}"
            time.sleep(0.001)


def _serve(path: Path, settings: dict[str, Any], pipe: Connection) -> None:
    store = open_store(path, **settings)
    pipe.send("open")
    while True:
        try:
            action = cloudpickle.loads(pipe.recv_bytes())
        except EOFError:
            store.close()
            return
        try:
            pipe.send(action(store))
        except Exception as error:
            pipe.send(error)


def _stop_in_a_write(store: EmbeddedStore) -> str:
    with store._opened().env.begin(write=True) as txn:
        txn.put(b"c-held", b"")
        os.kill(os.getpid(), signal.SIGSTOP)
        txn.abort()
    return "resumed"
