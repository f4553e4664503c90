"""Opening the store's file: short but sound ones, a folder that is held, and what LMDB's errors mean."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import lmdb
import msgspec
import pytest

from serve.features.database import failure_kind, held, open_database, part_from

PAGE_BYTES = 4096
MAX_BYTES = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store's folder with 1,000 records in its file."""
    with held(tmp_path / "features"):
        database = open_database(tmp_path / "features", MAX_BYTES)
    with database.env.begin(write=True) as txn:
        for number in range(1_000):
            txn.put(b"%d" % number, bytes(500))
    return tmp_path / "features"


def num_records(folder: Path) -> int:
    with held(folder):
        database = open_database(folder, MAX_BYTES)
    return int(database.env.stat()["entries"])


def claim_more_pages(data: Path, num_pages: int) -> None:
    """As LMDB leaves a file whose last pages were used and freed within one transaction: spoken of, never written."""
    content = bytearray(data.read_bytes())
    for meta in (0, PAGE_BYTES):
        (last_page,) = struct.unpack_from("<Q", content, meta + 136)
        struct.pack_into("<Q", content, meta + 136, last_page + num_pages)
    data.write_bytes(content)


def test_file_that_is_a_little_short_but_sound_is_kept_and_made_long_enough(folder):
    data = folder / "data.mdb"
    size = data.stat().st_size
    claim_more_pages(data, 10)
    assert num_records(folder) == 1_000
    assert data.stat().st_size == size + 10 * PAGE_BYTES
    assert not (folder / "damaged-data.mdb").exists()


def test_file_that_is_a_lot_too_short_is_set_aside(folder):
    claim_more_pages(folder / "data.mdb", 1_000)
    assert num_records(folder) == 0
    assert (folder / "damaged-data.mdb").exists()


def test_bound_is_enforced_and_may_be_changed_at_the_next_opening(folder):
    with held(folder):
        database = open_database(folder, 1 << 20)
    with pytest.raises(lmdb.MapFullError), database.env.begin(write=True) as txn:
        for number in range(4_000):
            txn.put(b"%d" % number, bytes(500))
    del database, txn
    with held(folder):
        database = open_database(folder, 64 << 20)
    with database.env.begin(write=True) as txn:
        for number in range(4_000):
            txn.put(b"%d" % number, bytes(500))
    assert 2 << 20 < database.bytes_used() < 4 << 20


def test_folder_that_somebody_holds_is_refused_and_free_again_after(folder):
    holder = os.open(folder, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(TimeoutError, match="held by another process"), held(folder):
        pass
    os.close(holder)
    assert num_records(folder) == 1_000


def test_database_is_closed_by_its_last_user_and_not_before(folder):
    with held(folder):
        database = open_database(folder, MAX_BYTES)
    reader = database.env.begin()
    del database
    with held(folder), pytest.raises(lmdb.Error, match="already open"):
        open_database(folder, MAX_BYTES)
    assert reader.get(b"7") == bytes(500)
    del reader
    assert num_records(folder) == 1_000


def test_only_the_files_that_were_opened_are_moved_away(folder):
    with held(folder):
        database = open_database(folder, MAX_BYTES)
        os.rename(folder / "data.mdb", folder / "former.mdb")
        (folder / "data.mdb").write_bytes(b"another")
        assert not database.opening.is_current()
        part_from(database.opening, is_damaged=True)
    assert (folder / "data.mdb").read_bytes() == b"another"
    assert not (folder / "lock.mdb").exists()


def system_error(code: int) -> lmdb.Error:
    """As LMDB raises it where the system refuses a call."""
    error = lmdb.Error(os.strerror(code))
    error.code = code
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.MapFullError("put"), "full"),
        *((system_error(code), "full") for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)),
        (lmdb.CorruptedError("get"), "damaged"),
        (lmdb.PageNotFoundError("get"), "damaged"),
        (msgspec.DecodeError("log entry"), "damaged"),
        (lmdb.PanicError("begin"), "replaced"),
        (lmdb.MapResizedError("begin"), "replaced"),
        (lmdb.ReadersFullError("begin"), "error"),
        (system_error(errno.EACCES), "error"),
        (ValueError("out of range"), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}: {value}",
)
def test_errors_say_whether_the_file_is_full_damaged_or_to_be_opened_anew(error, kind):
    assert failure_kind(error) == kind
