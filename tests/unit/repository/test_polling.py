"""What a folder's second look finds: new, changed and missing models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve.repository import polling
from serve.repository.polling import changes, stamp_of


def put(folder: Path, text: str = "x") -> Path:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model").write_text(text)
    (folder / "config.pbtxt").write_text("")
    return folder


def test_new_changed_and_missing_models_are_told_apart() -> None:
    a, b = (("a", 1, 1),), (("a", 2, 1),)
    assert changes({}, {}) == ([], [])
    assert changes({"same": a, "changed": a, "gone": a}, {"same": a, "changed": b, "new": a}) == (
        ["changed", "new"],
        ["gone"],
    )


@pytest.mark.parametrize("change", ["content", "time", "file", "version", "less"])
def test_any_change_below_a_models_folder_is_seen(tmp_path: Path, change: str) -> None:
    folder = put(tmp_path / "m")
    before = stamp_of(folder)
    assert before == stamp_of(folder)
    if change == "content":
        put(folder, "longer")
    elif change == "time":
        os.utime(folder / "config.pbtxt", ns=(1, 1))
    elif change == "file":
        (folder / "labels.txt").touch()
    elif change == "version":
        (folder / "2").mkdir()
        (folder / "2" / "model").touch()
    else:
        (folder / "1" / "model").unlink()
    assert stamp_of(folder) != before


def test_a_folder_with_very_many_files_costs_a_bounded_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_MAX_FILES", 3)
    folder = put(tmp_path / "m")
    for n in range(10):
        (folder / f"more{n}").touch()
    assert len(stamp_of(folder)) == 3


def test_a_link_that_leads_nowhere_is_no_file(tmp_path: Path) -> None:
    folder = put(tmp_path / "m")
    before = stamp_of(folder)
    (folder / "dangling").symlink_to(tmp_path / "none")
    assert stamp_of(folder) == before
