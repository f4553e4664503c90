"""The file in which one replica process keeps its metrics, so that any other process can read them.

Names, labels and amounts enter; slots of shared memory leave, to be added to in place. Called by the recorders
(`serve.observability.metrics`) to write and by `serve.observability.folder` to parse and to write the retired file.

    header 64 bytes │ directory: entries appended, each [length, CRC32, JSON] │ data: 8-byte slots, int64 or float64

A reader in another process sees the directory grow: an entry and its slots are complete before `directory_used` in the
header covers them, and the checksum catches a machine that reorders the stores.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson

from serve.observability.process import NO_PROCESS, ProcessIdentity, this_process

_log = logging.getLogger(__name__)

Slots = npt.NDArray[np.int64]
"""A series' slots; those that hold float64 are read through `.view(np.float64)`."""

MAGIC: Final = b"HDRMTR01"
_HEADER: Final = struct.Struct("<8s6q8x")
_ENTRY: Final = struct.Struct("<II")
_PID_SLOT: Final = 1
_DIRECTORY_USED_SLOT: Final = 6

DIRECTORY_BYTES: Final = 512 * 1024
DATA_BYTES: Final = 4 * 1024 * 1024
SLOT_BYTES: Final = 8
_DATA_START: Final = _HEADER.size + DIRECTORY_BYTES
_FILE_BYTES: Final = _DATA_START + DATA_BYTES


class Kind(StrEnum):
    """What a series' slots hold and how two processes' are put together."""

    COUNTER = "counter"
    GAUGE_SUM = "gauge_sum"
    GAUGE_MAX = "gauge_max"
    HISTOGRAM = "histogram"
    TALLY = "tally"
    WINDOW = "window"
    FOLDED = "folded"


class Series(NamedTuple):
    """One metric with one set of label values, in the order its family names them."""

    kind: Kind
    name: str
    labels: tuple[str, ...]
    num_slots: int


@dataclass(frozen=True, slots=True)
class Image:
    """What was in a metrics file at one moment. `generation` and `folded` (file names) are of the retired file."""

    process: ProcessIdentity
    generation: int
    series: Mapping[Series, Slots]
    folded: frozenset[str]


EMPTY_IMAGE: Final = Image(NO_PROCESS, 0, {}, frozenset())

Read = Callable[[int, int], bytes]
"""`read(num_bytes, offset)`: what `os.pread` is to a file; may return less at the end."""


class DamagedFile(Exception):
    """Not a metrics file, cut short, or overwritten."""


def parse_image(read: Read, size_bytes: int) -> Image:
    """Reads a whole metrics file; raises DamagedFile. Never maps it, so its truncation cannot kill the reader."""
    process, generation, capacity, used = _parse_header(read(_HEADER.size, 0))
    data_start = _HEADER.size + capacity
    if used == 0:
        return Image(process, generation, {}, frozenset())
    if not 0 < used <= capacity or data_start > size_bytes:
        raise DamagedFile(f"directory of {used} in {capacity} bytes does not fit a file of {size_bytes} bytes")
    entries = _parse_directory(read(used, _HEADER.size), used)
    data_bytes = SLOT_BYTES * max((offset + series.num_slots for series, offset in entries), default=0)
    if data_start + data_bytes > size_bytes:
        raise DamagedFile(f"data of {data_bytes} bytes does not fit a file of {size_bytes} bytes")
    data = read(data_bytes, data_start)
    if len(data) < data_bytes:
        raise DamagedFile(f"data of {data_bytes} bytes is cut to {len(data)}")
    slots = np.frombuffer(data, np.int64)
    series = {s: slots[offset : offset + s.num_slots] for s, offset in entries if s.kind is not Kind.FOLDED}
    folded = frozenset(s.name for s, _ in entries if s.kind is Kind.FOLDED)
    return Image(process, generation, series, folded)


def read_generation(read: Read) -> int:
    """Generation of a retired file; raises DamagedFile."""
    return _parse_header(read(_HEADER.size, 0))[1]


def encode_retired(generation: int, folded: Iterable[str], series: Mapping[Series, Slots], boot: int) -> bytes:
    """A whole metrics file that no process owns, with the names of the files it takes the place of."""
    directory, data, offset = bytearray(), bytearray(), 0
    for name in folded:
        directory += _encode_entry(Series(Kind.FOLDED, name, (), 0), 0)
    for one, slots in series.items():
        directory += _encode_entry(one, offset)
        data += slots.tobytes()
        offset += one.num_slots
    header = _HEADER.pack(MAGIC, 0, 0, boot, generation, len(directory), len(directory))
    return bytes(header + directory + data)


class MetricsFile:
    """The calling process's metrics. `find` and `add` are thread-safe; who owns a slot guards what is done with it.

    `array` (int64), `ints` and `floats` view the whole file; a slot number indexes all three. When the folder cannot be
    written, the same memory without a file: `name` is None then, and only this process can report it.
    """

    def __init__(self, memory: mmap.mmap, name: str | None, overflow: str) -> None:
        self.name = name
        self.array: Slots = np.frombuffer(memory, np.int64)
        self.ints = memoryview(memory).cast("q")
        self.floats = memoryview(memory).cast("d")
        self._memory = memory
        self._lock = threading.Lock()
        self._slot_of: dict[tuple[str, tuple[str, ...]], int] = {}
        self._directory_used = 0
        self._next_slot = _DATA_START // SLOT_BYTES
        self._overflow_slot = self._append(Series(Kind.COUNTER, overflow, (), 1))

    @classmethod
    def create(cls, folder: Path, *, overflow: str) -> Self:
        """Makes this process's file in `folder`, its disk space reserved; falls back to plain memory with a warning.

        `overflow` names the counter of recordings that found the file full.
        """
        process = this_process()
        name = f"{process.pid}-{time.monotonic_ns()}.mmap"
        try:
            return cls(_map_new_file(folder / name, process), name, overflow)
        except OSError as error:
            _log.warning("metrics are kept in memory only and not shared with other replicas: %s", error)
            return cls(_map_memory(process), None, overflow)

    def find(self, name: str, labels: tuple[str, ...]) -> int | None:
        """First slot of a series, None before it was added."""
        return self._slot_of.get((name, labels))

    def add(self, series: Series) -> int | None:
        """First slot of a series, made with zeros on first use; None, counted and logged, when the file is full."""
        with self._lock:
            slot = self.find(series.name, series.labels)
            if slot is None:
                slot = self._append(series)
            if slot is None:
                self._count_overflow(series)
            return slot

    def image(self) -> Image:
        """What the file holds now."""
        return parse_image(lambda size, offset: self._memory[offset : offset + size], len(self._memory))

    def close(self) -> None:
        """Gives the file up: its gauges no longer count, its counters may be folded. Nothing may be recorded after."""
        self.ints[_PID_SLOT] = 0

    def _append(self, series: Series) -> int | None:
        slot = self._next_slot
        entry = _encode_entry(series, slot - _DATA_START // SLOT_BYTES)
        fits_directory = self._directory_used + len(entry) <= DIRECTORY_BYTES
        if not fits_directory or slot + series.num_slots > len(self.ints):
            return None
        self._publish(entry)
        self._next_slot += series.num_slots
        self._slot_of[series.name, series.labels] = slot
        return slot

    def _publish(self, entry: bytes) -> None:
        start = _HEADER.size + self._directory_used
        self._memory[start : start + len(entry)] = entry
        self._directory_used += len(entry)
        self.ints[_DIRECTORY_USED_SLOT] = self._directory_used

    def _count_overflow(self, series: Series) -> None:
        if self._overflow_slot is None:
            return
        if self.floats[self._overflow_slot] == 0:
            _log.error("the metrics file is full; series %s%s and later ones are left out", series.name, series.labels)
        self.floats[self._overflow_slot] += 1


def _header_of(process: ProcessIdentity) -> bytes:
    return _HEADER.pack(MAGIC, process.pid, process.start_ticks, process.boot, 0, DIRECTORY_BYTES, 0)


def _map_new_file(path: Path, process: ProcessIdentity) -> mmap.mmap:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # In one write, so that a reader finds an empty file or a valid one.
        os.write(fd, _header_of(process))
        # Reserved now: a page that finds the disk full when it is first written kills the process (SIGBUS).
        os.posix_fallocate(fd, 0, _FILE_BYTES)
        return mmap.mmap(fd, _FILE_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


def _map_memory(process: ProcessIdentity) -> mmap.mmap:
    memory = mmap.mmap(-1, _FILE_BYTES)
    memory[: _HEADER.size] = _header_of(process)
    return memory


def _parse_header(header: bytes) -> tuple[ProcessIdentity, int, int, int]:
    if len(header) < _HEADER.size:
        raise DamagedFile(f"{len(header)} bytes are no header")
    magic, pid, start_ticks, boot, generation, capacity, used = _HEADER.unpack(header)
    if magic != MAGIC:
        raise DamagedFile("it was not written by this kind of server")
    return ProcessIdentity(pid, start_ticks, boot), generation, capacity, used


def _encode_entry(series: Series, offset: int) -> bytes:
    body = orjson.dumps([series.kind, series.name, series.labels, series.num_slots, offset])
    return _ENTRY.pack(len(body), zlib.crc32(body)) + body


def _parse_directory(directory: bytes, used: int) -> list[tuple[Series, int]]:
    if len(directory) < used:
        raise DamagedFile(f"directory of {used} bytes is cut to {len(directory)}")
    entries, position = [], 0
    while position < used:
        entry, position = _parse_entry(directory, position)
        entries.append(entry)
    return entries


def _parse_entry(directory: bytes, position: int) -> tuple[tuple[Series, int], int]:
    start = position + _ENTRY.size
    if start > len(directory):
        raise DamagedFile("the directory ends within an entry")
    length, checksum = _ENTRY.unpack_from(directory, position)
    body = directory[start : start + length]
    if len(body) < length or zlib.crc32(body) != checksum:
        raise DamagedFile(f"the directory entry at byte {position} fails its checksum")
    try:
        kind, name, labels, num_slots, offset = orjson.loads(body)
        series = Series(Kind(kind), str(name), tuple(map(str, labels)), int(num_slots))
        return (series, int(offset)), start + length
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"the directory entry at byte {position} is not of this version") from error
