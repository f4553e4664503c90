from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from serve.observability.log_file import LogFile


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    for line in (b"one\n", b"two\n"):
        file = LogFile(path, 1_000)
        assert file.write([line, line]) == 0
        file.close()
    assert path.read_bytes() == b"one\none\ntwo\ntwo\n"


def test_two_files_of_the_given_size_are_kept_at_most(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    file = LogFile(path, 100)
    for number in range(50):
        assert file.write([b"%09d\n" % number]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["access.log", "access.log.1"]
    lines = (tmp_path / "access.log.1").read_bytes() + path.read_bytes()
    assert [int(line) for line in lines.split()] == list(range(30, 50))


def test_a_full_disk_loses_the_lines_and_the_next_are_written_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    file = LogFile(path, 1_000)
    assert file.write([b"lost\n", b"lost too\n"]) == 2
    path.unlink()
    assert file.write([b"kept\n"]) == 0
    assert path.read_bytes() == b"kept\n"


def test_a_folder_that_cannot_be_made_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    file = LogFile(tmp_path / "logs" / "access.log", 1_000)
    assert file.write([b"lost\n"]) == 1
    (tmp_path / "logs").unlink()
    assert file.write([b"kept\n"]) == 0


def test_a_line_cut_short_by_a_full_disk_does_not_swallow_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.log"
    file, real_write, room = LogFile(path, 1_000), os.write, 8

    def write_while_there_is_room(fd: int, content: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError("no space left on device")
        num_written = real_write(fd, content[:room])
        room -= num_written
        return num_written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_while_there_is_room)
        assert file.write([b"first\n", b"second\n", b"third\n"]) == 2
    assert file.write([b"fourth\n"]) == 0
    assert path.read_bytes() == b"first\nse\nfourth\n"


def test_stderr_is_written_without_a_path(capfd: pytest.CaptureFixture[str]) -> None:
    file = LogFile(None, 10)
    assert file.write([b"a line longer than ten bytes\n"]) == 0
    file.close()
    assert capfd.readouterr().err == "a line longer than ten bytes\n"


def write_numbers(path: Path, writer: int) -> None:
    file = LogFile(path, 2_500)
    for number in range(150):
        assert file.write([b"%d %d\n" % (writer, number)]) == 0


def test_processes_that_share_a_path_lose_no_line_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writers = [multiprocessing.get_context("fork").Process(target=write_numbers, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    lines = ((tmp_path / "access.log.1").read_bytes() + path.read_bytes()).split(b"\n")
    assert sorted(filter(None, lines)) == sorted(b"%d %d" % (w, n) for w in range(4) for n in range(150))
