"""Rebuilds `1/` from the credit card transactions of Université Libre de Bruxelles; the card beside it has the results.

    python model_repository/creditcard/train.py --data FOLDER_WITH_creditcard_sample.csv.gz [--out FOLDER]

Takes Time, V1 to V28, Amount, Class and origin; leaves xgboost.ubj and metrics.json. The same data gives the same bytes,
in under a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float64]

SEED = 7
COLUMNS = ("Time", *(f"V{i}" for i in range(1, 29)), "Amount")
GENUINE_PER_FRAUD = 283_253 / 473
"""Of the distinct rows of the whole set: what weights restore."""
RECALL = 0.8
NUM_FOLDS, NUM_RESAMPLES = 5, 2_000
NUM_TREES = 400
PARAMETERS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_depth": 4,
    "eta": 0.05,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "reg_lambda": 10.0,
    "nthread": 2,
    "seed": SEED,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows, whether each is fraud, how many of the whole set's it stands for, and whether it may be tested on: the
    sample has too many genuine transactions of the first hours, which are trained on only.
    """

    rows: Floats
    is_fraud: Flags
    weights: Weights
    is_testable: Flags


def load(folder: Path) -> Sample:
    """Reads the sample; weights give the testable rows the prevalence of the whole set."""
    import pandas as pd

    table = pd.read_csv(folder / "creditcard_sample.csv.gz")
    is_fraud = table["Class"].to_numpy() == 1
    is_testable = is_fraud | (table["origin"] == "uniform").to_numpy()
    num_genuine = np.count_nonzero(is_testable & ~is_fraud)
    weights = np.where(is_fraud, 1.0, GENUINE_PER_FRAUD * is_fraud.sum() / num_genuine)
    return Sample(table[list(COLUMNS)].to_numpy(np.float32), is_fraud, weights, is_testable)


def fit(sample: Sample, train: npt.NDArray[np.int64]) -> Any:
    """The booster, from the rows numbered in `train`."""
    import xgboost

    matrix = xgboost.DMatrix(sample.rows[train], sample.is_fraud[train], weight=sample.weights[train])
    return xgboost.train(PARAMETERS, matrix, NUM_TREES)


def measures(score: Floats, is_fraud: Flags, weights: Weights) -> dict[str, float]:
    """At the whole set's prevalence. `precision_at_recall` is at the highest threshold that finds `RECALL` of fraud."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    threshold = np.sort(score[is_fraud])[::-1][int(np.ceil(RECALL * is_fraud.sum())) - 1]
    stopped = score >= threshold
    return {
        "auc_roc": float(roc_auc_score(is_fraud, score, sample_weight=weights)),
        "average_precision": float(average_precision_score(is_fraud, score, sample_weight=weights)),
        "precision_at_recall_0.8": float(weights[stopped & is_fraud].sum() / weights[stopped].sum()),
    }


def with_intervals(score: Floats, is_fraud: Flags, weights: Weights) -> dict[str, Any]:
    """The measures, and 95 % of what they are when rows of each class are drawn again, with replacement."""
    random = np.random.default_rng(SEED)
    kinds = [np.flatnonzero(is_fraud), np.flatnonzero(~is_fraud)]
    drawn = [np.concatenate([random.choice(kind, len(kind)) for kind in kinds]) for _ in range(NUM_RESAMPLES)]
    samples = [measures(score[rows], is_fraud[rows], weights[rows]) for rows in drawn]
    return {
        name: {"value": round(value, 4),
               "interval_95": [round(float(q), 4) for q in np.quantile([s[name] for s in samples], [0.025, 0.975])]}
        for name, value in measures(score, is_fraud, weights).items()
    }  # fmt: skip


def main() -> None:
    """Evaluates on a held-out fifth and, for how much that depends on the fifth, on all five; keeps a model of all rows."""
    import xgboost
    from sklearn.model_selection import StratifiedKFold

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with creditcard_sample.csv.gz")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "1", help="where the artefacts go")
    options = arguments.parse_args()
    sample = load(options.data)
    testable, others = np.flatnonzero(sample.is_testable), np.flatnonzero(~sample.is_testable)
    is_fraud, weights = sample.is_fraud[testable], sample.weights[testable]
    unseen = np.zeros(len(testable), np.float32)
    held_out = []
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=SEED)
    for train, test in folds.split(testable, is_fraud):
        booster = fit(sample, np.concatenate([testable[train], others]))
        unseen[test] = booster.predict(xgboost.DMatrix(sample.rows[testable[test]]))
        held_out.append(test)
    first = held_out[0]
    metrics = {
        "rows": len(testable),
        "frauds": int(is_fraud.sum()),
        "prevalence": round(float(np.average(is_fraud, weights=weights)), 6),
        "held_out_fifth": with_intervals(unseen[first], is_fraud[first], weights[first]),
        "all_five_fifths": with_intervals(unseen, is_fraud, weights),
        "each_fifth": [
            {name: round(value, 4) for name, value in measures(unseen[test], is_fraud[test], weights[test]).items()}
            for test in held_out
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    fit(sample, np.arange(len(sample.rows))).save_model(options.out / "xgboost.ubj")
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
