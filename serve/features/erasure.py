"""Takes erased customers off the disk: first their entries out of the log, a little every second, then the pages.

Takes an open database; deletes in short transactions, then, at most once in `compact_after_s`, replaces the file by a
copy of its records, which has no pages with what was deleted. Called by the store's housekeeper.

While the copy is written nobody can commit: at some 200 MB/s, and for a store of gigabytes some seconds, in which
answers say that they are unrecorded. Other processes notice that their file was replaced, and open the copy.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from serve.features import records
from serve.features.database import DATA, LOCK, Database, held
from serve.features.retention import Audit

log = logging.getLogger(__name__)

_ENTRIES_PER_ROUND = 4096
_DELETED_PER_TRANSACTION = 128
_RECORDS_PER_TRANSACTION = 4096
_RETRY_S = 600.0
_SEARCH_S = 3600.0
"""How long compaction waits, beside its own time, for a search that is under way."""


class Erasure:
    """Remembers how far the search of the log has come; a process that ends leaves it to the next one."""

    def __init__(
        self, folder: Path, compact_after_s: float, wall_clock_s: Callable[[], float], on_audit: Audit
    ) -> None:
        self._folder = folder
        self._compact_after_s = compact_after_s
        self._wall_clock_s = wall_clock_s
        self._on_audit = on_audit
        self._erased: Mapping[str, bytes] = {}
        self._after: int | None = None
        self._not_before_s = 0.0

    def run(self, database: Database) -> bool:
        """One round; whether the file was replaced and must be opened anew."""
        with database.env.begin() as txn:
            erased = self._erased or records.erasures(txn)
            uncompacted = txn.get(records.UNCOMPACTED)
        if erased:
            self._search(database, erased)
        if uncompacted is None:
            return False
        waited_s = self._wall_clock_s() - int.from_bytes(uncompacted, "big") / 1e6
        is_overdue = waited_s >= 2 * self._compact_after_s + _SEARCH_S  # while one after the other is erased
        if waited_s < self._compact_after_s or (erased and not is_overdue) or time.monotonic() < self._not_before_s:
            return False
        try:
            return self._compact(database)
        except TimeoutError:  # another process compacts, or opens; the next round finds out
            return False
        except Exception:
            self._not_before_s = time.monotonic() + _RETRY_S  # copying holds the lock: not every second in vain
            raise

    def _search(self, database: Database, erased: Mapping[str, bytes]) -> None:
        self._erased = erased
        with database.env.begin() as txn:
            doomed, self._after = records.find_erased(txn, erased, self._after or 0, _ENTRIES_PER_ROUND)
        for some in (doomed[i : i + _DELETED_PER_TRANSACTION] for i in range(0, len(doomed), _DELETED_PER_TRANSACTION)):
            with database.env.begin(write=True) as txn:
                records.forget(txn, some)
        if self._after is None:
            with database.env.begin(write=True) as txn:
                records.end_erasures(txn, erased, int(self._wall_clock_s() * 1e6))
            self._erased = {}
            self._on_audit("erased_from_log", {"customers": len(erased)})

    def _compact(self, database: Database) -> bool:
        """Puts a compacted copy in the file's place; whoever waits for the old file's lock finds it replaced. Raises
        OSError where there is no room for a second file.
        """
        with held(self._folder), database.env.begin(write=True) as txn:
            if not database.opening.is_current():
                return True
            for left in self._folder.glob("compacting-*"):  # by a process that was killed: copies of what is erased now
                shutil.rmtree(left, ignore_errors=True)
            if shutil.disk_usage(self._folder).free < database.bytes_used():
                raise OSError(errno.ENOSPC, f"no room for a second copy of {self._folder / DATA} to compact it")
            aside = Path(tempfile.mkdtemp(prefix="compacting-", dir=self._folder))
            try:
                _copy(txn, aside, database.env.info()["map_size"])
                for damaged in self._folder.glob("damaged-*"):  # what was set aside holds the erased, too
                    damaged.unlink()
                (self._folder / LOCK).unlink(missing_ok=True)  # first: killed here, the next one opens old data anew
                os.replace(aside / DATA, self._folder / DATA)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        log.info("the feature store was compacted: what had been erased has left the disk")
        self._on_audit("compacted", {})
        return True


def _copy(source: records.Txn, folder: Path, max_bytes: int) -> None:
    """Writes every record anew. LMDB's own compacting copy keeps deleted keys, where they part the pages of others, and
    what was behind a value in a page that was used again.
    """
    import lmdb

    with lmdb.open(str(folder), map_size=max_bytes, mode=0o600, sync=False) as copy, source.cursor() as cursor:
        kept = (record for record in cursor if record[0] != records.UNCOMPACTED)
        while some := list(islice(kept, _RECORDS_PER_TRANSACTION)):
            with copy.begin(write=True) as txn, txn.cursor() as to:
                to.putmulti(some, append=True)
        copy.sync(True)
