"""One opened LMDB file of the embedded store: opened safely, recognised when it is replaced, set aside when damaged.

Takes the store's folder and its bound; gives a `Database`. Called by `serve.features.embedded`.

Mapping a file that is too short kills the process, so its length is checked first; two processes that open, replace or
set aside files at once would end up with different locks on the same data, so a lock on the folder is held meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

log = logging.getLogger(__name__)

DATA, LOCK = "data.mdb", "lock.mdb"
_MAX_READERS = 512
_HOLD_S = 0.5
_META_BYTES = 152
_MAX_UNWRITTEN_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""EIO is what LMDB says of a write that was cut short, as the first one to a full disk is."""

FileId = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """One opening of a store's files; only itself is equal to it. Unlike the database, it keeps nothing open.

    Paths are strings: `is_current` is asked before every commit, and joining paths would cost more than it.
    """

    data: str
    lock: str
    data_id: FileId | None
    lock_id: FileId | None

    @classmethod
    def of(cls, folder: Path) -> Opening:
        """Of the files that are in the folder now."""
        data, lock = os.fspath(folder / DATA), os.fspath(folder / LOCK)
        return cls(data, lock, file_id(data), file_id(lock))

    def is_current(self) -> bool:
        """Whether the paths still lead to the files that were opened."""
        return self.has_its_data() and file_id(self.lock) == self.lock_id

    def has_its_data(self) -> bool:
        """Whether the data's path does."""
        return file_id(self.data) == self.data_id


class Database:
    """One open file. Nobody closes it: its last user's reference does, so it is never unmapped under a reader."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        import lmdb

        # No named databases: making their handles would wait for the write lock, and hold the GIL meanwhile.
        self.env = lmdb.open(
            str(folder), map_size=max_bytes, mode=0o600, create=False, sync=False, metasync=False, readahead=False,
            max_readers=_MAX_READERS, max_spare_txns=1,
        )  # fmt: skip
        self.env.reader_check()
        self.max_bytes = max_bytes
        self.opening = Opening.of(folder)

    def bytes_used(self) -> int:
        """Bytes of the pages that hold records."""
        stat = self.env.stat()
        return int(stat["psize"] * (2 + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))


def open_database(folder: Path, max_bytes: int) -> Database:
    """Opens the folder's file, new where there is none or a damaged one. Only while the folder is `held`.

    Raises OSError or lmdb.Error where it cannot.
    """
    import lmdb

    _make_safe_to_map(folder / DATA)
    try:
        return Database(folder, max_bytes)
    except lmdb.Error as error:
        if failure_kind(error) != "damaged":
            raise
        _set_aside(folder, str(error))
        return Database(folder, max_bytes)


def part_from(former: Opening, *, is_damaged: bool) -> None:
    """Moves away what may not be opened again: damaged data, unless another process was faster, or a lock beside other
    data than it was made with. Only while the folder is `held`, and `former` open: else its inodes are others by now.
    """
    is_same_data = former.has_its_data()
    if is_damaged and is_same_data:
        _set_aside(Path(former.data).parent, "a page was damaged")
    elif not is_same_data and file_id(former.lock) == former.lock_id:
        os.unlink(former.lock)  # it tells the transaction number of the former data


def failure_kind(error: Exception) -> Literal["full", "damaged", "replaced", "error"]:
    """What an error while reading or writing says of the file; replaced: it must be opened anew."""
    import lmdb

    if isinstance(error, lmdb.MapFullError) or getattr(error, "code", None) in _NO_ROOM:
        return "full"
    damaged = (
        lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PageFullError,
        lmdb.CursorFullError, lmdb.IncompatibleError, lmdb.BadTxnError, msgspec.DecodeError, SystemError,
    )  # fmt: skip
    if isinstance(error, damaged):
        return "damaged"
    # Panic: writing the newest meta page failed, and this process may not go on with its mapping.
    return "replaced" if isinstance(error, lmdb.PanicError | lmdb.MapResizedError) else "error"


def file_id(file: str) -> FileId | None:
    """Device and inode of a file, None where there is none."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made with mode 0700 if need be, locked against other processes that would open or move its files.

    Raises OSError: it is another user's, cannot be made or read, or somebody holds it for longer than half a second.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _make_private(folder, descriptor)
        _lock(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _make_private(folder: Path, descriptor: int) -> None:
    stat = os.fstat(descriptor)
    if stat.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to user {stat.st_uid}; allowed: {os.geteuid()}, who runs the server")
    if stat.st_mode & 0o077:
        log.warning("%s was open to other users; its mode is 0700 now", folder)
        os.fchmod(descriptor, 0o700)


def _lock(folder: Path, descriptor: int) -> None:
    until_s = time.monotonic() + _HOLD_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{folder} is held by another process that opens it") from None
            time.sleep(0.005)


def _make_safe_to_map(data: Path) -> None:
    """Sees to it that every page the file speaks of can be mapped.

    LMDB need not have written its last pages where they were freed at once, so a file may be a little short and sound;
    zeros stand in for them, which are found out when a page was lost after all. A file that is shorter is set aside.
    """
    try:
        size = data.stat().st_size
    except FileNotFoundError:
        return
    missing = _bytes_expected(data) - size if size else 0
    if missing > _MAX_UNWRITTEN_BYTES:
        _set_aside(data.parent, f"{missing} bytes are missing at its end")
    elif missing > 0:
        with data.open("r+b") as file:
            os.posix_fallocate(file.fileno(), size, missing)


def _bytes_expected(data: Path) -> int:
    """Bytes up to the last page of the newer meta page; for a file that is no LMDB file, more than any has.

    LMDB 0.9's layout: in each of the first two pages, after a 16-byte header, magic u32, version u32, address u64,
    map size u64, two databases of 48 bytes (the first begins with the page size u32), last page u64, transaction u64.
    """
    with data.open("rb") as file:
        first = file.read(_META_BYTES)
        page_bytes = int.from_bytes(first[40:44], "little")
        file.seek(page_bytes)
        second = file.read(_META_BYTES)
    if len(first) < _META_BYTES or len(second) < _META_BYTES:
        return 1 << 63
    newer = max(first, second, key=lambda meta: int.from_bytes(meta[144:152], "little"))
    return (int.from_bytes(newer[136:144], "little") + 1) * page_bytes


def _set_aside(folder: Path, reason: str) -> None:
    log.error("the feature store %s is damaged (%s); it is set aside and a new one begun", folder / DATA, reason)
    for name in (DATA, LOCK):
        if (folder / name).exists():
            os.replace(folder / name, folder / f"damaged-{name}")
