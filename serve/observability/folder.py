"""All replicas' metrics files as one server's metrics.

The run's metrics folder enters; merged series leave. Called by whichever replica answers `/metrics` or `/v2/budgets`,
and once by each replica as it starts, to fold the files of dead processes into `retired.mmap`.

A dead process's counters stay, its gauges do not. Readers take no lock. A fold renames the new retired file into place
before it removes what it took in, and the retired file names what that was; so a reader that finds the same retired
file before and after has counted everything once, and a fold killed half-way is finished by the next.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from serve.observability.latency import NUM_SLICES, WINDOW_SLOTS
from serve.observability.process import boot_number, is_alive
from serve.observability.shared import (
    EMPTY_IMAGE,
    DamagedFile,
    Image,
    Kind,
    MetricsFile,
    Series,
    Slots,
    encode_retired,
    parse_image,
    read_generation,
)

_log = logging.getLogger(__name__)

RETIRED: Final = "retired.mmap"
_RETIRED_ASIDE: Final = "retired.new"
_LOCK: Final = "fold.lock"
_PROCESS_FILE: Final = re.compile(r"\d+-\d+\.mmap")
_READ_ATTEMPTS: Final = 10
_PARSE_ATTEMPTS: Final = 3
_GAUGES: Final = frozenset({Kind.GAUGE_SUM, Kind.GAUGE_MAX})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole server's series at one moment; `taken_ns` on the monotonic clock."""

    series: Mapping[Series, Slots]
    taken_ns: int

    def slots_of(self, name: str, num_slots: int) -> dict[tuple[str, ...], Slots]:
        """Label values → slots of one metric, those of its present size (another version's may differ)."""
        return {s.labels: slots for s, slots in self.series.items() if s.name == name and s.num_slots == num_slots}

    def values_of(self, name: str) -> dict[tuple[str, ...], float]:
        """Label values → value of one counter or gauge."""
        return {labels: float(slots.view(np.float64)[0]) for labels, slots in self.slots_of(name, num_slots=1).items()}


class MetricsFolder:
    """The folder of one server's metrics files. A file that cannot be read is skipped with one log line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reported: set[str] = set()

    def read(self, now_ns: int, own: MetricsFile | None = None) -> Snapshot:
        """Every process's series merged; `own` is read from memory, so it counts even without its file."""
        own_name = own.name if own is not None else None
        for _ in range(_READ_ATTEMPTS):
            retired = self._image(RETIRED) or EMPTY_IMAGE
            images = [retired, *self._process_images(except_for=retired.folded | {own_name}).values()]
            if self._retired_generation() == retired.generation:
                break
        if own is not None:
            images.append(own.image())
        return Snapshot(merge(images), now_ns)

    def fold(self) -> None:
        """Moves dead processes' counters into the retired file; does nothing while another process folds."""
        try:
            with self._try_lock() as is_locked:
                if is_locked:
                    self._fold()
        except OSError as error:
            _log.warning("files of ended processes stay in %s as they are: %s", self.path, error)

    def _fold(self) -> None:
        retired = self._image(RETIRED) or EMPTY_IMAGE
        for name in retired.folded:
            self._remove(name)
        images = self._process_images(except_for=retired.folded)
        dead_names = [name for name, image in images.items() if not is_alive(image.process)]
        # Read again now that nobody writes them: a process may have recorded between its image and its end.
        dead = {name: image for name in dead_names if (image := self._image(name)) is not None}
        if not dead:
            return
        still_there = retired.folded.intersection(os.listdir(self.path))
        series = merge([retired, *dead.values()])
        self._replace_retired(encode_retired(retired.generation + 1, still_there | dead.keys(), series, boot_number()))
        for name in dead:
            self._remove(name)

    def _replace_retired(self, content: bytes) -> None:
        aside = self.path / _RETIRED_ASIDE
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path / RETIRED)

    def _remove(self, name: str) -> None:
        with suppress(OSError):  # one that stays is named in the retired file, so it is not counted twice
            (self.path / name).unlink()

    @contextmanager
    def _try_lock(self) -> Iterator[bool]:
        with (self.path / _LOCK).open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _process_images(self, except_for: frozenset[str | None]) -> dict[str, Image]:
        """Images of the processes' files by name, oldest name first."""
        names = sorted(set(self._names()) - except_for)
        return {name: image for name in names if (image := self._image(name)) is not None}

    def _names(self) -> Iterator[str]:
        try:
            names = os.listdir(self.path)
        except OSError as error:
            self._report(".", error)
            return
        for name in names:
            if _PROCESS_FILE.fullmatch(name):
                yield name
            elif name not in (RETIRED, _RETIRED_ASIDE, _LOCK):
                self._report(name, "it is not a metrics file")

    def _image(self, name: str) -> Image | None:
        try:
            return _read_image(self.path / name)
        except FileNotFoundError:
            return None  # folded since the folder was listed, or no retired file yet
        except (OSError, DamagedFile) as error:
            self._report(name, error)
            return None

    def _retired_generation(self) -> int:
        with suppress(OSError, DamagedFile), _opened(self.path / RETIRED) as fd:
            return read_generation(partial(os.pread, fd))
        return EMPTY_IMAGE.generation

    def _report(self, name: str, why: object) -> None:
        if name not in self._reported:
            self._reported.add(name)
            _log.warning("skipped in the metrics folder: %s: %s", self.path / name, why)


def merge(images: Iterable[Image]) -> dict[Series, Slots]:
    """Adds up what still counts of each image; the result owns its arrays."""
    merged: dict[Series, Slots] = {}
    for image in images:
        for series, slots in _countable(image):
            mine = merged.get(series)
            merged[series] = slots.copy() if mine is None else _merge_slots(series.kind, mine, slots)
    return merged


def _countable(image: Image) -> Iterator[tuple[Series, Slots]]:
    has_ended = not is_alive(image.process)
    is_of_this_boot = image.process.boot == boot_number()
    for series, slots in image.series.items():
        if series.kind in _GAUGES and has_ended:
            continue
        # Slices are numbered on the monotonic clock, which starts again with each boot.
        if series.kind is Kind.WINDOW and not (is_of_this_boot and series.num_slots == WINDOW_SLOTS):
            continue
        yield series, slots


def _merge_slots(kind: Kind, mine: Slots, other: Slots) -> Slots:
    match kind:
        case Kind.COUNTER | Kind.GAUGE_SUM:
            return (mine.view(np.float64) + other.view(np.float64)).view(np.int64)
        case Kind.GAUGE_MAX:
            return np.fmax(mine.view(np.float64), other.view(np.float64)).view(np.int64)
        case Kind.TALLY:
            return mine + other
        case Kind.HISTOGRAM:
            merged = mine + other
            merged.view(np.float64)[0] = mine.view(np.float64)[0] + other.view(np.float64)[0]
            return merged
        case Kind.WINDOW:
            return _merge_windows(mine, other)
        case Kind.FOLDED:
            raise AssertionError("names of folded files are not series")


def _merge_windows(mine: Slots, other: Slots) -> Slots:
    """Adds slices of the same number; of two numbers at one place in the ring the newer is kept."""
    a, b = mine.reshape(NUM_SLICES, -1), other.reshape(NUM_SLICES, -1)
    merged = np.where(b[:, :1] > a[:, :1], b, a)
    same = a[:, 0] == b[:, 0]
    merged[same, 1:] = a[same, 1:] + b[same, 1:]
    return merged.reshape(-1)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Neither a link nor a pipe of a metrics file's name may be followed or waited for.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_image(path: Path) -> Image | None:
    """One file's image, None while it is being made; a failed parse is repeated, for it may have met a growing file."""
    with _opened(path) as fd:
        for attempt in range(1, _PARSE_ATTEMPTS + 1):
            size_bytes = os.fstat(fd).st_size
            if size_bytes == 0:
                return None
            try:
                return parse_image(partial(os.pread, fd), size_bytes)
            except DamagedFile:
                if attempt == _PARSE_ATTEMPTS:
                    raise
    return None
