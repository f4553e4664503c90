"""A small model in every file format."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
import treelite
import xgboost


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """A folder with one classifier as xgboost.json, xgboost.ubj and checkpoint.tl, and another as model.txt."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 4)).astype(np.float32)
    labels = (rows[:, 0] * rows[:, 1] > 0).astype(int)
    parameters = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(rows, labels), 8)
    booster.save_model(folder / "xgboost.json")
    booster.save_model(folder / "xgboost.ubj")
    treelite.frontend.from_xgboost(booster).serialize(folder / "checkpoint.tl")
    parameters = {"objective": "binary", "num_leaves": 9, "num_threads": 1, "verbose": -1}
    lightgbm.train(parameters, lightgbm.Dataset(rows, labels), 8).save_model(folder / "model.txt")
    return folder
