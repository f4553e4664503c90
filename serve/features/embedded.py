"""The embedded feature store on LMDB: windows per key, decisions by transaction, and the log of both, in one file.

Batches of events enter; windows and earlier decisions leave. One transaction per batch records decisions, appends their
events to the log and enters them into the windows, so no crash can leave one without the other. Any number of replicas
of one node share the file; LMDB's lock orders their commits and survives a killed holder.

Commits do not wait for the disk: what was answered survives the death of any process; a power cut may lose the last
second (the writer flushes once a second).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serve.features.store import Events, Fetched, Stored, StoreFailed
from serve.features.windows import Advance, advance
from serve.features.writer import Writer

log = logging.getLogger(__name__)

_MAX_READERS = 256
_TRIM_ABOVE = 0.80
"""Share of the file's bound over which the oldest decisions make room for new ones."""
_TRIM_FACTOR = 4
_LOG_ENTRY = msgspec.msgpack.Encoder()


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event of the log, in the order of commits: what a replay needs to rebuild the windows."""

    transaction_id: str
    customer_id: str
    terminal_id: str
    event_s: int
    amount_e4: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The state a batch was read in, and what its events make of it."""

    txn_id: int
    keys: list[bytes]
    key_of_row: np.ndarray[Any, np.dtype[np.int32]]
    advanced: Advance


class EmbeddedStore:
    """Implements `FeatureStore`. `path` is a folder of its own, made with mode 0700."""

    def __init__(self, path: Path, *, max_bytes: int, flush_s: float = 1.0) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._environment = _Environment(path, max_bytes)
        self._writer = Writer(self._flush, every_s=flush_s)

    def fetch(self, events: Events) -> Fetched:
        """Reads decisions, then the states of the batch's customers and terminals, in one snapshot."""
        return self._guarded(lambda: self._fetch(events))

    def commit(
        self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched, deadline_ns: int
    ) -> list[Stored]:
        """Has the writer record the batch; raises StoreFailed("late") at the deadline: it may still be done."""
        return self._writer.run(lambda: self._guarded(lambda: self._commit(events, decisions, fetched)), deadline_ns)

    def check(self) -> None:
        """Opens the store anew where its file was replaced, removed or damaged."""
        if not self._environment.is_current():
            log.warning("the feature store's file was replaced; opening it anew")
            self._reopen()

    def close(self) -> None:
        """Ends the writer, flushes, closes."""
        self._writer.close()
        self._environment.close()

    def read_log(self, after: int = 0) -> list[tuple[int, LogEntry]]:
        """Sequence number and event of everything recorded after number `after`, oldest first."""
        environment = self._environment
        with environment.env.begin(db=environment.log) as txn, txn.cursor() as cursor:
            if not cursor.set_range(_sequence(after + 1)):
                return []
            decode = msgspec.msgpack.Decoder(LogEntry).decode
            return [(int.from_bytes(key, "big"), decode(value)) for key, value in cursor.iternext()]

    def bytes_used(self) -> int:
        """Bytes of the file that hold something, of `max_bytes`."""
        return self._environment.bytes_used()

    def _guarded(self, call: Any) -> Any:
        import lmdb

        try:
            return call()
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise StoreFailed("full", str(error)) from None
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError) as error:
            log.error("the feature store is damaged (%s); it is set aside", error)
            self._environment.set_aside()
            self._reopen()
            raise StoreFailed("damaged", str(error)) from None
        except (lmdb.Error, OSError) as error:
            raise StoreFailed("error", str(error)) from None

    def _reopen(self) -> None:
        former, self._environment = self._environment, _Environment(self.path, self._max_bytes)
        former.close()

    def _fetch(self, events: Events) -> Fetched:
        environment = self._environment
        keys, key_of_row = _distinct_keys(events)
        ids = [transaction_id.encode() for transaction_id in events.transaction_ids]
        with environment.env.begin(db=environment.states, buffers=True) as txn:
            stored = _stored(txn, environment.decisions, ids)
            states = _states(txn, environment.states, keys)
            advanced = _advance(states, key_of_row, events, [one.row for one in stored])
            txn_id = txn.id()
        n = len(ids)
        windows = advanced.windows
        if advanced.is_damaged.any():
            log.error("%d window states were damaged and started anew", int(advanced.is_damaged.sum()))
        return Fetched(
            stored, windows.rows(0, n), windows.rows(n, 2 * n), _Snapshot(txn_id, keys, key_of_row, advanced)
        )

    def _commit(self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched) -> list[Stored]:
        snapshot = fetched.snapshot
        assert isinstance(snapshot, _Snapshot)
        environment = self._environment
        with environment.env.begin(write=True) as txn:
            meanwhile: list[Stored] = []
            if txn.id() != snapshot.txn_id + 1:
                decisions, snapshot, meanwhile = self._catch_up(txn, events, decisions, snapshot)
            rows = [row for row, decision in enumerate(decisions) if decision is not None]
            if rows:
                _put(txn, environment, events, decisions, rows, snapshot)
            if environment.is_nearly_full():
                _trim(txn, environment, _TRIM_FACTOR * len(rows))
        return meanwhile

    def _catch_up(
        self, txn: Any, events: Events, decisions: Sequence[bytes | None], snapshot: _Snapshot
    ) -> tuple[Sequence[bytes | None], _Snapshot, list[Stored]]:
        """Another process committed since the batch was read: its decisions stand, and its events come first."""
        ids = [transaction_id.encode() for transaction_id in events.transaction_ids]
        stored = _stored(txn, self._environment.decisions, ids)
        meanwhile = [one for one in stored if decisions[one.row] is not None]
        decisions = list(decisions)
        for one in stored:
            decisions[one.row] = None
        states = _states(txn, self._environment.states, snapshot.keys)
        skipped = [row for row, decision in enumerate(decisions) if decision is None]
        advanced = _advance(states, snapshot.key_of_row, events, skipped)
        return decisions, replace(snapshot, advanced=advanced), meanwhile

    def _flush(self) -> None:
        self._guarded(self._environment.env.sync)


class _Environment:
    """One opened LMDB file. Checked before it is opened: mapping a file that is too short would kill the process."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        import lmdb

        self._path = path
        self._file = path / "data.mdb"
        self._max_bytes = max_bytes
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_too_short(self._file):
            log.error("the feature store %s is damaged; it is set aside", self._file)
            self.set_aside()
        try:
            self._open()
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError) as error:
            log.error("the feature store %s is damaged (%s); it is set aside", self._file, error)
            self.set_aside()
            self._open()

    def _open(self) -> None:
        import lmdb

        self.env = lmdb.open(
            str(self._path), map_size=self._max_bytes, max_dbs=4, max_readers=_MAX_READERS, mode=0o600,
            sync=False, metasync=False, readahead=False, max_spare_txns=2,
        )  # fmt: skip
        self.env.reader_check()
        self.states = self.env.open_db(b"states")
        self.decisions = self.env.open_db(b"decisions")
        self.log = self.env.open_db(b"log")
        self._page_bytes = self.env.stat()["psize"]
        self._inode = os.stat(self._file).st_ino

    def is_current(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return os.stat(self._file).st_ino == self._inode
        except OSError:
            return False

    def bytes_used(self) -> int:
        """Up to the last page in use; pages freed inside count as used."""
        return int((self.env.info()["last_pgno"] + 1) * self._page_bytes)

    def is_nearly_full(self) -> bool:
        """Whether the oldest entries should make room."""
        return self.bytes_used() > _TRIM_ABOVE * self._max_bytes

    def set_aside(self) -> None:
        """Moves the files away, for a person to look at; the newest damaged ones replace those before."""
        for name in ("data.mdb", "lock.mdb"):
            if (self._path / name).exists():
                os.replace(self._path / name, self._path / f"damaged-{name}")

    def close(self) -> None:
        """Unmaps the file."""
        self.env.close()


def _is_too_short(file: Path) -> bool:
    """Whether the file ends before the last page its newest meta page speaks of (LMDB's layout: two meta pages, at 0
    and 4096; in each, after a 16-byte page header: magic u32, version u32, address u64, mapsize u64, two 48-byte
    databases, last page u64, transaction u64).
    """
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return False
    if size == 0:
        return False
    with file.open("rb") as data:
        head = data.read(2 * 4096)
    metas = [head[at : at + 152] for at in (0, 4096)]
    if any(len(meta) < 152 for meta in metas):
        return True
    newest = max(metas, key=lambda meta: int.from_bytes(meta[144:152], "little"))
    last_page = int.from_bytes(newest[136:144], "little")
    return size < (last_page + 1) * 4096


def _distinct_keys(events: Events) -> tuple[list[bytes], np.ndarray[Any, np.dtype[np.int32]]]:
    """The batch's distinct keys; and the key of each of 2n rows: the customers', then the terminals'."""
    index: dict[bytes, int] = {}
    names = [b"c" + name.encode() for name in events.customer_ids]
    names += [b"t" + name.encode() for name in events.terminal_ids]
    key_of_row = np.fromiter((index.setdefault(name, len(index)) for name in names), np.int32, len(names))
    return list(index), key_of_row


def _stored(txn: Any, decisions: Any, ids: list[bytes]) -> list[Stored]:
    with txn.cursor(decisions) as cursor:
        found = {bytes(key): bytes(value) for key, value in cursor.getmulti(ids)}
    if not found:
        return []
    return [Stored(row, found[key]) for row, key in enumerate(ids) if key in found]


def _states(txn: Any, states: Any, keys: list[bytes]) -> list[Any]:
    with txn.cursor(states) as cursor:
        found = {bytes(key): value for key, value in cursor.getmulti(keys)}
    return [found.get(key) for key in keys]


def _advance(
    states: list[Any], key_of_row: np.ndarray[Any, np.dtype[np.int32]], events: Events, skipped: list[int]
) -> Advance:
    """Both windows of every row. Rows decided earlier were entered then: they are moved to a key of their own."""
    event_s = np.concatenate((events.event_s, events.event_s))
    amount_e4 = np.concatenate((events.amount_e4, events.amount_e4))
    if skipped:
        n = len(events.event_s)
        key_of_row = key_of_row.copy()
        key_of_row[skipped] = key_of_row[[row + n for row in skipped]] = len(states)
        states = [*states, None]
    return advance(states, key_of_row, event_s, amount_e4)


def _put(
    txn: Any, environment: _Environment, events: Events, decisions: Sequence[bytes | None], rows: list[int],
    snapshot: _Snapshot,
) -> None:  # fmt: skip
    new_states = snapshot.advanced.new_states()
    with txn.cursor(environment.states) as cursor:
        cursor.putmulti([(key, state) for key, state in zip(snapshot.keys, new_states, strict=False) if state])
    ids, customers, terminals = events.transaction_ids, events.customer_ids, events.terminal_ids
    with txn.cursor(environment.decisions) as cursor:
        cursor.putmulti([(ids[row].encode(), decisions[row]) for row in rows])
    event_s, amount_e4 = events.event_s.tolist(), events.amount_e4.tolist()
    encode = _LOG_ENTRY.encode
    with txn.cursor(environment.log) as cursor:
        last = int.from_bytes(cursor.key(), "big") if cursor.last() else 0
        entries = [
            (_sequence(last + 1 + i), encode((ids[row], customers[row], terminals[row], event_s[row], amount_e4[row])))
            for i, row in enumerate(rows)
        ]
        cursor.putmulti(entries, append=True)


def _trim(txn: Any, environment: _Environment, num_entries: int) -> None:
    """Forgets the oldest decisions; the windows keep what they counted."""
    decode = msgspec.msgpack.Decoder(LogEntry).decode
    with txn.cursor(environment.log) as cursor:
        for _ in range(num_entries):
            if not cursor.first():
                return
            txn.delete(decode(cursor.value()).transaction_id.encode(), db=environment.decisions)
            cursor.delete()


def _sequence(number: int) -> bytes:
    return number.to_bytes(8, "big")
