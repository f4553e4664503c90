"""The embedded feature store on LMDB: windows per key, decisions by transaction, and the log of both, in one file.

Batches of events enter; windows and earlier decisions leave. One transaction per batch records decisions, appends their
events to the log and enters them into the windows, so no crash can leave one without the other. Any number of replicas
of one node share the file; LMDB's lock orders their commits and survives a killed holder.

Commits do not wait for the disk. What was answered survives the death of any process. A power cut may lose the last
second, and one that strikes while the disk is being written may damage the file, which is then set aside.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from serve.features import records
from serve.features.batch import window_keys
from serve.features.database import Database, Opening, failure_kind, held, open_database, part_from
from serve.features.erasure import Erasure
from serve.features.records import Snapshot
from serve.features.retention import Audit, Retention
from serve.features.store import Events, Fetched, Labelled, LogEntry, Stored, StoreFailed
from serve.features.writer import Housekeeper, Writer

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRIM_ABOVE = 0.80
"""Share of the bound above which the oldest decisions make room. A transaction needs the rest for the pages it copies."""
_TRIM_FACTOR = 2
"""Decisions forgotten per decision recorded, meanwhile. More at once would make single commits late."""
_ROOM_ENTRIES, _ROOM_ROUNDS = 64, 3
"""A full file has few free pages, and gains those of a transaction two transactions later: so a few small ones."""


class EmbeddedStore:
    """Implements `FeatureStore`. `path` is a folder of its own; where it cannot be opened, `check` tries again.

    `max_bytes` bounds the file: above four fifths of it, the oldest decisions make room for new ones. A decision is
    kept for `max_age_s` after it was recorded. Customers that were erased leave the disk within `compact_after_s`, and
    about as long as it takes to read the log. `on_audit` is told what was forgotten.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, max_age_s: float = 30 * 86_400, housekeeping_s: float = 1.0,
        compact_after_s: float = 86_400, wall_clock_s: Callable[[], float] = time.time,
        on_audit: Audit = lambda event, details: None,
    ) -> None:  # fmt: skip
        self.path = path
        self._max_bytes = max_bytes
        self._wall_clock_s = wall_clock_s
        self._retention = Retention(max_age_s, wall_clock_s, on_audit)
        self._erasure = Erasure(path, compact_after_s, wall_clock_s, on_audit)
        self._opening_lock = threading.Lock()
        self._is_closed = False
        self._database: Database | None = None
        self._why_not_open = ""
        self._open_anew(None)
        self._writer = Writer()
        self._housekeeper = Housekeeper(self._housekeep, every_s=housekeeping_s)

    def fetch(self, events: Events) -> Fetched:
        """Reads decisions, then the states of the batch's customers and terminals, in one snapshot."""
        database = self._opened()
        try:
            return _read(database, events)
        except Exception as error:
            raise self._failed(database, error) from None

    def commit(
        self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched, deadline_ns: int
    ) -> list[Stored]:
        """Has the writer record the batch; raises StoreFailed "late" at the deadline, and "busy" until it is done."""
        return self._writer.run(lambda: self._commit(events, decisions, fetched), deadline_ns)

    def find(self, transaction_id: str) -> LogEntry | None:
        """The transaction's event and decision. Raises StoreFailed."""
        database = self._opened()
        try:
            with database.env.begin(buffers=True) as txn:
                found = records.find(txn, transaction_id)
        except Exception as error:
            raise self._failed(database, error) from None
        return None if found is None else found[1]

    def label(self, labels: Mapping[str, bool]) -> list[Labelled]:
        """Notes labels in one transaction; waits for the store's lock. Raises StoreFailed."""
        return self._write(lambda txn: records.label(txn, labels))

    def erase(self, customer_id: str) -> None:
        """Makes a customer unreadable; the housekeeper deletes and compacts. Raises StoreFailed."""
        self._write(lambda txn: records.erase(txn, customer_id))

    def check(self) -> None:
        """Opens the store anew where its file was replaced or removed, or could not be opened before."""
        opening = self._opening()
        if opening is None or not opening.is_current():
            self._open_anew(opening)

    def close(self) -> None:
        """Ends both threads, flushes, and lets the file go."""
        self._housekeeper.close()
        self._writer.close()
        with self._opening_lock:
            database, self._database, self._is_closed = self._database, None, True
        if database is not None:
            _flush_at_last(database)

    def read_log(self, after: int = 0) -> list[tuple[int, LogEntry]]:
        """Sequence number and entry of everything recorded after number `after`, oldest first. Raises StoreFailed."""
        database = self._opened()
        try:
            with database.env.begin() as txn:
                return list(records.log_entries(txn, after))
        except Exception as error:
            raise self._failed(database, error) from None

    def bytes_used(self) -> int:
        """Bytes of the file that hold records, of `max_bytes`; 0 while it is not open."""
        database = self._database
        return 0 if database is None else database.bytes_used()

    def _write(self, work: Callable[[records.Txn], T]) -> T:
        """What `work` gives, its transaction committed to the file that is in place, were it put there meanwhile."""
        try:
            return self._write_once(work)
        except StoreFailed as failure:
            if failure.event != "replaced":
                raise
        return self._write_once(work)

    def _write_once(self, work: Callable[[records.Txn], T]) -> T:
        database = self._current()
        try:
            with database.env.begin(write=True) as txn:
                _check_current(database)
                return work(txn)
        except Exception as error:
            raise self._failed(database, error) from None

    def _now_us(self) -> int:
        return int(self._wall_clock_s() * 1e6)

    def _opened(self) -> Database:
        database = self._database
        if database is None:
            raise StoreFailed("closed" if self._is_closed else "unavailable", self._why_not_open)
        return database

    def _opening(self) -> Opening | None:
        database = self._database
        return None if database is None else database.opening

    def _current(self) -> Database:
        """The open file, which is the one that the path leads to."""
        opening = self._opened().opening
        if not opening.is_current():
            self._open_anew(opening)
            raise StoreFailed("replaced", f"{self.path} was replaced since it was opened")
        return self._opened()

    def _open_anew(self, former: Opening | None, *, is_damaged: bool = False) -> None:
        """Replaces `former`, unless another thread was faster. Who still uses it may finish; until then the same file
        cannot be opened again, and `check` will.
        """
        import lmdb

        with self._opening_lock:
            if self._is_closed or self._opening() is not former:
                return
            try:
                self._replace(former, is_damaged)
                self._why_not_open = ""
            except (OSError, lmdb.Error) as error:
                self._database = None
                reason = str(error)
                if reason != self._why_not_open:
                    log.error("the feature store cannot be opened: %s", reason)  # not the error: it keeps files open
                self._why_not_open = reason

    def _replace(self, former: Opening | None, is_damaged: bool) -> None:
        with held(self.path):
            if former is not None:
                part_from(former, is_damaged=is_damaged)
                if former.has_its_data():
                    self._database = None  # closes it, where nobody uses it: LMDB opens no file twice
            self._database = open_database(self.path, self._max_bytes)

    def _failed(self, database: Database, error: Exception) -> StoreFailed:
        """What the caller is told; a file that cannot be used any more is replaced at once."""
        if isinstance(error, StoreFailed):
            self._open_anew(database.opening)  # replaced while its lock was waited for
            return error
        kind = failure_kind(error)
        if kind == "error":
            log.error("the feature store failed", exc_info=error)
        elif kind != "full":
            self._open_anew(database.opening, is_damaged=kind == "damaged")
        return StoreFailed(kind, str(error))

    def _commit(self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched) -> list[Stored]:
        snapshot = fetched.snapshot
        assert isinstance(snapshot, Snapshot)
        database = self._current()
        try:
            stored, num_trimmed = _record_with_room(database, events, decisions, snapshot, self._now_us())
        except Exception as error:
            raise self._failed(database, error) from None
        self._retention.saw(int(events.event_s.max(initial=0)))
        self._retention.trimmed(num_trimmed)
        return stored

    def _housekeep(self) -> None:
        """Once a second, beside the writer: flushing takes tens of milliseconds, for which no commit should wait."""
        database = self._database
        if database is None:
            return
        try:
            database.env.sync(True)
            database.env.reader_check()
            self._retention.run(database)
            if self._erasure.run(database):
                self._open_anew(database.opening)
        except Exception as error:
            raise self._failed(database, error) from None


def _check_current(database: Database) -> None:
    """While its lock was waited for, the file may have been replaced: by its compacted copy, for example."""
    if not database.opening.is_current():
        raise StoreFailed("replaced", "the store was replaced meanwhile")


def _flush_at_last(database: Database) -> None:
    import lmdb

    try:
        database.env.sync(True)
    except lmdb.Error as error:
        log.error("the feature store could not be flushed: %s", error)


def _read(database: Database, events: Events) -> Fetched:
    keys = window_keys(events)
    with database.env.begin(buffers=True) as txn:
        stored = records.stored_decisions(txn, events.transaction_ids)
        skipped = [one.row for one in stored]
        advanced = records.advance_windows(txn, keys, events, skipped)
        snapshot = Snapshot(database.opening, txn.id(), keys, skipped, advanced)
    if advanced.is_damaged.any():
        log.error("%d window states were damaged and started anew", int(advanced.is_damaged.sum()))
    n, windows = len(events.transaction_ids), advanced.windows
    return Fetched(stored, windows.rows(0, n), windows.rows(n, 2 * n), snapshot)


def _record_with_room(
    database: Database, events: Events, decisions: Sequence[bytes | None], snapshot: Snapshot, now_us: int
) -> tuple[list[Stored], int]:
    import lmdb

    try:
        return _record(database, events, decisions, snapshot, now_us)
    except lmdb.MapFullError:
        num_trimmed = 0
        for _ in range(_ROOM_ROUNDS):
            with database.env.begin(write=True) as txn:
                num_trimmed += records.trim(txn, _ROOM_ENTRIES)
        stored, num_more = _record(database, events, decisions, snapshot, now_us)
        return stored, num_trimmed + num_more


def _record(
    database: Database, events: Events, decisions: Sequence[bytes | None], snapshot: Snapshot, now_us: int
) -> tuple[list[Stored], int]:
    """One transaction. Was something committed since the snapshot, what it decided stands, and its events come first;
    gives the rows concerned, and how many decisions were forgotten for want of room.
    """
    with database.env.begin(write=True) as txn:
        _check_current(database)
        is_nearly_full = database.bytes_used() > _TRIM_ABOVE * database.max_bytes
        is_current = snapshot.opening is database.opening and txn.id() == snapshot.txn_id + 1
        stored = [] if is_current else records.stored_decisions(txn, events.transaction_ids)
        meanwhile = [one for one in stored if decisions[one.row] is not None]
        decided = {one.row for one in stored}.union(snapshot.skipped)
        to_record = [None if row in decided else decision for row, decision in enumerate(decisions)]
        skipped = [row for row, decision in enumerate(to_record) if decision is None]
        advanced = snapshot.advanced
        if not is_current or skipped != snapshot.skipped:
            advanced = records.advance_windows(txn, snapshot.keys, events, skipped)
        num_rows = len(to_record) - len(skipped)
        if num_rows:
            records.put_batch(txn, events, to_record, snapshot.keys.keys, advanced, now_us)
        num_trimmed = records.trim(txn, _TRIM_FACTOR * num_rows) if is_nearly_full else 0
    return meanwhile, num_trimmed
