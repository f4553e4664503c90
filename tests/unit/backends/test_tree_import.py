"""Model files read in a process of their own: read back unchanged, or refused by name whatever is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import treelite

from serve.backends.tree_import import FILE_NAMES, import_here, import_model, imported_trees, load_treelite, read_forest
from serve.errors import ModelLoadError


def test_the_import_is_read_back_unchanged(model_files, tmp_path):
    import_here(model_files / "xgboost.json", "xgboost_json", tmp_path)
    expected = imported_trees(load_treelite(model_files / "xgboost.json", "xgboost_json"))
    found = read_forest(tmp_path)
    assert (found.postprocessor, found.alpha, found.num_columns) == ("sigmoid", 1.0, 2)
    for name in ("sources", "roots", "columns", "slot", "bound", "child", "category", "bitsets", "leaf", "base"):
        assert np.array_equal(getattr(found.forest, name), getattr(expected.forest, name)), name
    assert found.forest.depth == expected.forest.depth


def damage(content: bytes, kind: str) -> bytes:
    if kind == "cut":
        return content[: len(content) // 2]
    random = np.random.default_rng(5)
    flipped = np.frombuffer(content, np.uint8).copy()
    flipped[random.integers(0, len(flipped), 40)] ^= 16
    return flipped.tobytes()


@pytest.mark.parametrize(
    ("model_type", "kind"), [("xgboost_json", "cut"), ("xgboost_ubj", "flipped"), ("lightgbm", "cut")]
)
def test_a_damaged_file_is_refused_with_its_name(model_files, tmp_path, model_type, kind):
    name = FILE_NAMES[model_type]
    (tmp_path / name).write_bytes(damage((model_files / name).read_bytes(), kind))
    with pytest.raises(ModelLoadError, match=name.replace(".", r"\.")) as caught:
        import_model(tmp_path / name, model_type, tmp_path)
    assert "Traceback" not in caught.value.message
    assert "/project/src" not in caught.value.message


@pytest.mark.parametrize("model_type", FILE_NAMES)
@pytest.mark.parametrize("content", [b"", np.random.default_rng(5).bytes(500)], ids=["empty", "noise"])
def test_a_file_that_is_no_model_is_not_taken_for_one(tmp_path, model_type, content):
    file = tmp_path / FILE_NAMES[model_type]
    file.write_bytes(content)
    with pytest.raises((ValueError, treelite.TreeliteError)):
        load_treelite(file, model_type)


def test_a_file_that_crashes_the_parser_is_refused(tmp_path, monkeypatch):
    (tmp_path / "xgboost.json").write_text("{}")
    (tmp_path / "treelite.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"crashed the parser \(signal 11\)"):
        import_model(tmp_path / "xgboost.json", "xgboost_json", tmp_path)
