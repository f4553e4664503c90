"""The ensemble's members and the meta-learner that combines them: how each is fitted, scores, and is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from history import Flags, Floats, History

from kernels.reference_network import inputs
from kernels.reference_stacking import log_odds
from serve.backends.network import write_network

F64 = npt.NDArray[np.float64]

SEED = 7
NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted member: scores rows (with gaps filled where `needs_values`), and writes itself into a file."""

    score: Callable[[Floats], F64]
    write: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a member is named, kept, and fitted to rows and labels."""

    name: str
    type: str
    file: str
    needs_values: bool
    fit: Callable[[Floats, Flags], Fitted]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the members are: by how much there is to learn from."""

    num_trees: int
    depth: int
    num_leaves: int
    epochs: int


def recipes(sizes: Sizes) -> tuple[Recipe, ...]:
    """The four members, in the order of their scores."""

    def xgboost(rows: Floats, is_fraud: Flags) -> Fitted:
        import xgboost as library

        parameters = {
            "objective": "binary:logistic", "tree_method": "hist", "max_depth": sizes.depth, "eta": 0.05,
            "min_child_weight": 3, "subsample": 0.8, "colsample_bytree": 0.6, "nthread": NUM_THREADS, "seed": SEED,
        }  # fmt: skip
        booster = library.train(parameters, library.DMatrix(rows, is_fraud), sizes.num_trees)
        return Fitted(lambda some: np.asarray(booster.predict(library.DMatrix(some)), np.float64), booster.save_model)

    def lightgbm(rows: Floats, is_fraud: Flags) -> Fitted:
        import lightgbm as library

        parameters = {
            "objective": "binary", "learning_rate": 0.05, "num_leaves": sizes.num_leaves, "max_depth": sizes.depth,
            "min_data_in_leaf": 30, "feature_fraction": 0.6, "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 5,
            "verbosity": -1, "num_threads": NUM_THREADS, "seed": SEED, "deterministic": True, "force_row_wise": True,
        }  # fmt: skip
        booster = library.train(parameters, library.Dataset(rows, is_fraud.astype(np.int8)), sizes.num_trees)
        return Fitted(lambda some: np.asarray(booster.predict(some), np.float64), booster.save_model)

    return (
        Recipe("xgboost", "xgboost_ubj", "xgboost.ubj", False, xgboost),
        Recipe("lightgbm", "lightgbm", "lightgbm.txt", False, lightgbm),
        Recipe("isolation_forest", "treelite_checkpoint", "isolation_forest.tl", True, _isolation_forest),
        Recipe("neural_network", "network", "neural_network.npz", False, lambda r, y: _network(r, y, sizes.epochs)),
    )


def _isolation_forest(rows: Floats, _: Flags) -> Fitted:
    """Knows no labels: how few random cuts single a row out (Liu, Ting, Zhou 2008)."""
    import treelite
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=100, max_samples=256, random_state=SEED, n_jobs=NUM_THREADS).fit(rows)
    return Fitted(lambda some: -forest.score_samples(some), treelite.sklearn.import_model(forest).serialize)


def _network(rows: Floats, is_fraud: Flags, epochs: int) -> Fitted:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    spread = np.sign(rows) * np.log1p(np.abs(rows.astype(np.float64)))
    mean, scale = np.nanmean(spread, axis=0), 1 / np.maximum(np.nanstd(spread, axis=0), 1e-6)
    network = MLPClassifier((32, 16), alpha=1e-3, max_iter=epochs, batch_size=256, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(inputs(rows, mean, scale), is_fraud)
    layers = list(zip(network.coefs_, network.intercepts_, strict=True))
    return Fitted(
        lambda some: network.predict_proba(inputs(some, mean, scale))[:, 1],
        lambda path: write_network(path, mean, scale, layers),
    )


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Everything that is fitted. `mean_log_odds` are the members', out of fold."""

    recipes: Sequence[Recipe]
    members: Sequence[Fitted]
    weights: F64
    bias: float
    mean_log_odds: F64
    fill: Floats

    def member_scores(self, rows: Floats) -> F64:
        """[n, members]."""
        return _scores(self.recipes, self.members, rows, self.fill)

    def score(self, rows: Floats) -> Floats:
        """Probabilities [n]."""
        z = log_odds(self.member_scores(rows)) @ self.weights + self.bias
        return np.asarray(1 / (1 + np.exp(-z)), np.float32)

    def about(self) -> dict[str, Any]:
        """What the server reads as `stacked.json`."""
        members = [
            {"name": one.name, "type": one.type, "file": one.file, "needs_values": one.needs_values,
             "weight": float(weight), "mean_log_odds": float(mean)}
            for one, weight, mean in zip(self.recipes, self.weights, self.mean_log_odds, strict=True)
        ]  # fmt: skip
        return {"members": members, "bias": self.bias, "fill": [float(value) for value in self.fill]}


def fit(train: History, sizes: Sizes, num_folds: int) -> Ensemble:
    """Members on all rows; the meta-learner on scores of members that did not see the row.

    Folds are stretches of time: neighbours in time share terminals and cards, and a random split would show each
    member what it is asked about.
    """
    fill = np.nanmean(train.rows.astype(np.float64), axis=0).astype(np.float32)
    kinds = recipes(sizes)
    fold = np.arange(len(train.rows)) * num_folds // len(train.rows)
    unseen = np.zeros((len(train.rows), len(kinds)))
    for number in range(num_folds):
        print(f"  fold {number + 1} of {num_folds}", flush=True)
        others = train.where(fold != number)
        members = [_fit(one, others, fill) for one in kinds]
        unseen[fold == number] = _scores(kinds, members, train.rows[fold == number], fill)
    weights, bias = _meta_learner(log_odds(unseen), train.is_fraud)
    print("  all", flush=True)
    members = [_fit(one, train, fill) for one in kinds]
    return Ensemble(kinds, members, weights, bias, log_odds(unseen).mean(axis=0), fill)


def _fit(recipe: Recipe, train: History, fill: Floats) -> Fitted:
    return recipe.fit(_filled(train.rows, fill) if recipe.needs_values else train.rows, train.is_fraud)


def _scores(recipes: Sequence[Recipe], members: Sequence[Fitted], rows: Floats, fill: Floats) -> F64:
    filled = _filled(rows, fill)
    columns = [
        member.score(filled if recipe.needs_values else rows) for recipe, member in zip(recipes, members, strict=True)
    ]
    return np.stack(columns, axis=1)


def _filled(rows: Floats, fill: Floats) -> Floats:
    return np.where(np.isnan(rows), fill, rows)


def _meta_learner(members: F64, is_fraud: Flags) -> tuple[F64, float]:
    """Weights and bias of a logistic regression; no weight below 0, so that a member's reasons keep their direction."""
    from scipy.optimize import minimize

    def loss(parameters: F64) -> tuple[float, F64]:
        weights, bias = parameters[:-1], parameters[-1]
        z = members @ weights + bias
        error = 1 / (1 + np.exp(-z)) - is_fraud
        value = np.mean(np.logaddexp(0, z) - is_fraud * z) + 1e-4 * weights @ weights
        return float(value), np.append(members.T @ error / len(z) + 2e-4 * weights, error.mean())

    start = np.append(np.full(members.shape[1], 0.25), 0.0)
    bounds = [(0.0, None)] * members.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B")
    return np.asarray(found.x[:-1]), float(found.x[-1])
