"""The artefact cache: built once, also by two real processes; safe, bounded, and whole or rebuilt."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.errors import DependencyFailed
from serve.repository.cache import MANIFEST, ArtefactCache, artefact_key, cpu_features

ROOT = Path(__file__).parents[3]


class Builder:
    """Counts how often it builds a file of `size_bytes`."""

    def __init__(self, size_bytes: int = 10) -> None:
        self.calls = 0
        self.size_bytes = size_bytes

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "parts").mkdir()
        (folder / "parts" / "artefact").write_bytes(b"x" * self.size_bytes)


def quiet(line: str) -> None:
    """Takes progress and says nothing."""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "deep" / "cache"


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_an_artefact_is_built_once_and_found_again(root):
    build, lines = Builder(), []
    folder = ArtefactCache(root, 10**6).get_or_build("k", "trees", build, lines.append)
    again = ArtefactCache(root, 10**6).get_or_build("k", "trees", build, lines.append)
    assert (folder / "parts" / "artefact").read_bytes() == b"x" * 10
    assert (again, build.calls, lines) == (folder, 1, ["building trees"])


def test_another_key_or_name_is_another_artefact(root):
    cache, build = ArtefactCache(root, 10**6), Builder()
    folders = {cache.get_or_build(key, name, build, quiet) for key in "ab" for name in ("trees", "engine")}
    assert (len(folders), build.calls) == (4, 4)


def test_the_folder_is_made_for_its_owner_alone(root):
    ArtefactCache(root, 10**6).get_or_build("k", "trees", Builder(), quiet)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o720])
def test_a_folder_that_others_can_open_is_refused(root, mode):
    root.mkdir(parents=True)
    root.chmod(mode)
    with pytest.raises(DependencyFailed, match=f"mode {mode:04o}; allowed 0700"):
        ArtefactCache(root, 10**6).get_or_build("k", "trees", Builder(), quiet)


def test_a_folder_of_another_user_is_refused(root, monkeypatch):
    root.mkdir(parents=True, mode=0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(DependencyFailed, match=f"belongs to user {owner}; allowed {owner + 1}"):
        ArtefactCache(root, 10**6).get_or_build("k", "trees", Builder(), quiet)


def test_a_link_in_place_of_the_folder_is_refused(root, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.parent.mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DependencyFailed, match="is a link or a file"):
        ArtefactCache(root, 10**6).get_or_build("k", "trees", Builder(), quiet)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DependencyFailed, match="cannot be used"):
        ArtefactCache(tmp_path / "file" / "cache", 10**6).get_or_build("k", "trees", Builder(), quiet)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "added", "manifest"])
def test_an_entry_that_is_not_as_it_was_built_is_built_again(root, damage):
    build = Builder()
    folder = ArtefactCache(root, 10**6).get_or_build("k", "trees", build, quiet)
    artefact = folder / "parts" / "artefact"
    if damage == "changed":
        artefact.write_bytes(b"y" * 10)
    elif damage == "cut":
        artefact.write_bytes(b"x" * 5)
    elif damage == "gone":
        artefact.unlink()
    elif damage == "added":
        (folder / "more").write_bytes(b"")
    else:
        (folder / MANIFEST).write_bytes(b"{")
    ArtefactCache(root, 10**6).get_or_build("k", "trees", build, quiet)
    assert build.calls == 2
    assert artefact.read_bytes() == b"x" * 10
    assert not (folder / "more").exists()


def test_a_build_that_fails_leaves_nothing_behind(root):
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ValueError("no")

    cache = ArtefactCache(root, 10**6)
    with pytest.raises(ValueError, match="no"):
        cache.get_or_build("k", "trees", fail, quiet)
    assert names(root) == set()
    cache.get_or_build("k", "trees", Builder(), quiet)
    assert names(root) == {"trees-k"}


def test_a_full_disk_is_said_and_leaves_nothing_behind(root):
    def fill(folder: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(DependencyFailed, match="is full"):
        ArtefactCache(root, 10**6).get_or_build("k", "trees", fill, quiet)
    assert names(root) == set()


def aged(folder: Path, seconds: int) -> None:
    """Makes an entry look as if it was last used so long ago."""
    then_ns = time.time_ns() - seconds * 10**9
    os.utime(folder / MANIFEST, ns=(then_ns, then_ns))


def test_the_least_recently_used_entry_goes_first(root):
    before = ArtefactCache(root, 10**6)
    for age, key in ((30, "a"), (10, "b"), (20, "c")):
        aged(before.get_or_build(key, "trees", Builder(4000), quiet), age)
    before.close()
    ArtefactCache(root, 9_000).get_or_build("d", "trees", Builder(4000), quiet)
    assert names(root) == {"trees-b", "trees-d"}


def test_using_an_entry_makes_it_recent(root):
    before = ArtefactCache(root, 10**6)
    for age, key in ((30, "a"), (20, "b")):
        aged(before.get_or_build(key, "trees", Builder(4000), quiet), age)
    before.get_or_build("a", "trees", Builder(4000), quiet)
    before.close()
    ArtefactCache(root, 9_000).get_or_build("d", "trees", Builder(4000), quiet)
    assert names(root) == {"trees-a", "trees-d"}


def test_an_entry_in_use_is_kept_however_large(root):
    user, other = ArtefactCache(root, 100), ArtefactCache(root, 100)
    user.get_or_build("a", "trees", Builder(4000), quiet)
    user.get_or_build("b", "trees", Builder(4000), quiet)
    other.get_or_build("c", "trees", Builder(4000), quiet)
    assert names(root) == {"trees-a", "trees-b", "trees-c"}
    user.close()
    other.get_or_build("c", "trees", Builder(4000), quiet)
    assert names(root) == {"trees-c"}


PROCESS = """
import sys
from pathlib import Path
from serve.repository.cache import ArtefactCache

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "artefact").write_text("whole")

folder = ArtefactCache(Path(sys.argv[1]), 10**6).get_or_build("k", "trees", build, lambda line: None)
print("has " + (folder / "artefact").read_text(), flush=True)
"""


def start(root: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(root), str(log)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_until_blocked(pid: int) -> None:
    """Returns when the process waits for a file lock."""
    deadline_ns = time.monotonic_ns() + 20 * 10**9
    while time.monotonic_ns() < deadline_ns:
        if any(" -> " in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines()):
            return
        os.sched_yield()
    pytest.fail(f"process {pid} never waited for the lock")


def test_two_processes_build_once(root, tmp_path):
    log = tmp_path / "log"
    with start(root, log) as first:
        assert first.stdout.readline() == "building\n"
        with start(root, log) as second:
            wait_until_blocked(second.pid)
            first.communicate("go on\n")
            assert second.stdout.readline() == "has whole\n"
    assert log.read_text() == "built\n"


def test_a_builder_that_was_killed_leaves_the_next_one_a_clean_start(root, tmp_path):
    log = tmp_path / "log"
    with start(root, log) as first:
        assert first.stdout.readline() == "building\n"
        first.kill()
    assert any(".tmp" in name for name in names(root))
    with start(root, log) as second:
        assert second.stdout.readline() == "building\n"
        assert second.communicate("go on\n")[0] == "has whole\n"
    assert names(root) == {"trees-k"}


def test_the_key_follows_content_and_tools(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    keys = [
        artefact_key(one, "gcc 12"),
        artefact_key(other, "gcc 12"),
        artefact_key(one, "gcc 13"),
        artefact_key(one, "gcc", " 12"),
    ]
    assert len(set(keys)) == 4
    assert artefact_key(one, "gcc 12") == keys[0]


def test_processor_features_do_not_depend_on_their_order_or_on_the_clock(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("model name\t: X\ncpu MHz\t: 1\nflags\t\t: sse avx2\n")
    second.write_text("model name\t: X\ncpu MHz\t: 2\nflags\t\t: avx2 sse\n")
    assert cpu_features(first) == cpu_features(second)
    assert "avx2" in cpu_features(first)
