from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.observability import shared
from serve.observability.process import this_process
from serve.observability.shared import (
    DamagedFile,
    Image,
    Kind,
    MetricsFile,
    Series,
    encode_retired,
    parse_image,
    read_generation,
)

COUNTER = Series(Kind.COUNTER, "requests", ("http", "ok"), 1)
HISTOGRAM = Series(Kind.HISTOGRAM, "durations", ("fraud",), 12)


def parse(content: bytes) -> Image:
    return parse_image(lambda size, offset: content[offset : offset + size], len(content))


def create(folder: Path) -> MetricsFile:
    return MetricsFile.create(folder, overflow="overflow")


@pytest.fixture
def filled(tmp_path: Path) -> MetricsFile:
    file = create(tmp_path)
    counter, histogram = file.add(COUNTER), file.add(HISTOGRAM)
    assert counter is not None
    assert histogram is not None
    file.floats[counter] = 2.5
    file.ints[histogram + 3] = 7
    return file


def test_what_is_recorded_is_read_back_from_the_file_and_from_memory(tmp_path: Path, filled: MetricsFile) -> None:
    assert filled.name is not None
    for image in (filled.image(), parse((tmp_path / filled.name).read_bytes())):
        assert image.process == this_process()
        assert list(image.series) == [Series(Kind.COUNTER, "overflow", (), 1), COUNTER, HISTOGRAM]
        assert image.series[COUNTER].view(np.float64)[0] == 2.5
        assert image.series[HISTOGRAM].tolist() == [0, 0, 0, 7] + [0] * 8


def test_a_series_is_made_once(filled: MetricsFile) -> None:
    assert filled.add(COUNTER) == filled.find(COUNTER.name, COUNTER.labels)
    assert filled.find("requests", ("grpc", "ok")) is None


def test_a_full_file_leaves_series_out_and_counts_the_losses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = create(tmp_path)
    num_slots = shared.DATA_BYTES // 8 // 4
    made = [file.add(Series(Kind.HISTOGRAM, "big", (str(n),), num_slots)) for n in range(10)]
    assert [slot is not None for slot in made] == [True] * 3 + [False] * 7
    assert file.image().series[Series(Kind.COUNTER, "overflow", (), 1)].view(np.float64)[0] == 7
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "big('3',)" in caplog.text


def test_a_full_directory_leaves_series_out_too(tmp_path: Path) -> None:
    file = create(tmp_path)
    labels = [("x" * 50_000, str(n)) for n in range(12)]
    made = [file.add(Series(Kind.COUNTER, "long", one, 1)) for one in labels]
    assert sum(slot is not None for slot in made) == 10
    assert len(file.image().series) == 11


def test_without_room_on_disk_metrics_are_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file = create(tmp_path)
    assert file.name is None
    assert list(tmp_path.iterdir()) == []
    slot = file.add(COUNTER)
    assert slot is not None
    file.floats[slot] += 1
    assert file.image().series[COUNTER].view(np.float64)[0] == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_folder_that_cannot_be_made_keeps_metrics_in_memory(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert create(tmp_path / "taken").name is None


def test_a_closed_file_belongs_to_no_process(filled: MetricsFile) -> None:
    filled.close()
    assert filled.image().process.pid == 0


def test_the_retired_file_names_what_it_took_in() -> None:
    series = {COUNTER: np.array([1.5]).view(np.int64), HISTOGRAM: np.arange(12)}
    content = encode_retired(4, ["1-2.mmap", "3-4.mmap"], series, boot=9)
    image = parse(content)
    assert (image.generation, image.folded, image.process.pid) == (4, {"1-2.mmap", "3-4.mmap"}, 0)
    assert read_generation(lambda size, offset: content[offset : offset + size]) == 4
    assert image.series[COUNTER].view(np.float64)[0] == 1.5
    assert image.series[HISTOGRAM].tolist() == list(range(12))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255), length=st.integers(0, 1_000))
def test_a_damaged_or_cut_file_is_refused_or_read_but_never_crashes(position: int, value: int, length: int) -> None:
    series = {COUNTER: np.array([1.5]).view(np.int64), HISTOGRAM: np.arange(12)}
    content = bytearray(encode_retired(1, ["1-2.mmap"], series, boot=9))
    if position < len(content):
        content[position] = value
    try:
        image = parse(bytes(content[:length]))
    except DamagedFile:
        return
    assert set(image.series) == {COUNTER, HISTOGRAM} or image.series == {}


@given(content=st.binary(max_size=300))
def test_a_foreign_file_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedFile):
        parse(content)


@given(tail=st.binary(max_size=200))
def test_a_foreign_file_that_begins_like_ours_is_refused_or_empty(tail: bytes) -> None:
    with contextlib.suppress(DamagedFile):
        assert parse(shared.MAGIC + tail).series == {}


def test_an_entry_of_another_version_is_refused() -> None:
    unknown = Series("sparkline", "new", (), 1)  # type: ignore[arg-type]
    with pytest.raises(DamagedFile, match="not of this version"):
        parse(encode_retired(1, [], {unknown: np.zeros(1, np.int64)}, boot=9))
