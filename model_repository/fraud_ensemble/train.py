"""Rebuilds `1/` from the Fraud Detection Handbook's simulated transactions; the card beside this file has the results.

    python model_repository/fraud_ensemble/train.py --data FOLDER_WITH_transactions.parquet [--out FOLDER]

Takes `transactions.parquet` (TX_DATETIME, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT, TX_FRAUD, TX_FRAUD_SCENARIO); leaves the
members' files, stacked.json (how they are combined), policy.json (what the fraud pipeline decides by), reference.json
(what drift is measured against), metrics.json and cost.png. The same data and library versions give the same members:
a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation import (
    HANDBOOK_TRAIN,
    CostCurve,
    Costs,
    choose_thresholds,
    discrimination,
    drift_reference,
    evaluate,
    handbook_test,
    policy,
)
from history import History, load
from members import Ensemble, Sizes, fit

from serve.features.windows import FEATURES

# Days since the first. Labels arrive 7 days late: that long, nothing trains, and no threshold is chosen.
PERIODS = {"train": (30, 106), "validation": (113, 127), "test": (134, 155)}
SIZES = Sizes(num_trees=300, depth=6, num_leaves=31, epochs=6)
WEEK_SIZES = Sizes(num_trees=100, depth=4, num_leaves=15, epochs=30)
NUM_FOLDS, WEEK_FOLDS = 4, 7


def on_handbooks_week(history: History) -> dict[str, Any]:
    """Ensemble and members by the handbook's protocol: a week to train on, a week later a week to test on."""
    print("the handbook's split: 25 to 31 July, tested on 8 to 14 August", flush=True)
    ensemble = fit(history.days(*HANDBOOK_TRAIN), WEEK_SIZES, WEEK_FOLDS)
    test = handbook_test(history)
    return {"ensemble": discrimination(ensemble.score(test.rows), test), **by_member(ensemble, test)}


def by_member(ensemble: Ensemble, history: History) -> dict[str, Any]:
    """What each member would be worth alone."""
    scores = ensemble.member_scores(history.rows)
    return {one.name: discrimination(scores[:, k], history) for k, one in enumerate(ensemble.recipes)}


def main() -> None:
    """Trains, chooses the thresholds, evaluates, writes."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with transactions.parquet")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "1", help="where the artefacts go")
    arguments.add_argument("--false-positive-cost", type=float, default=50, help="of stopping a good transaction")
    arguments.add_argument("--false-negative-cost", type=float, default=500, help="of letting a fraud through")
    options = arguments.parse_args()
    costs = Costs(options.false_positive_cost, options.false_negative_cost)
    print("computing features of the whole history", flush=True)
    history = load(options.data)
    week = on_handbooks_week(history)
    train, validation, test = (history.days(*period) for period in PERIODS.values())
    print(f"training on {len(train.rows)} transactions", flush=True)
    ensemble = fit(train, SIZES, NUM_FOLDS)
    probability = ensemble.score(validation.rows)
    at = choose_thresholds(probability, validation.is_fraud, costs)
    metrics = {
        "costs": asdict(costs),
        "handbook_week": week,
        "validation": evaluate(probability, validation, at, costs),
        "test": evaluate(ensemble.score(test.rows), test, at, costs),
        "test_by_member": by_member(ensemble, test),
    }
    write(options.out, ensemble, {
        "stacked": ensemble.about(),
        "policy": policy(list(FEATURES), at, ensemble.fill),
        "reference": drift_reference(list(FEATURES), validation.rows, probability),
        "metrics": metrics,
    })  # fmt: skip
    CostCurve.of(probability, validation.is_fraud, costs).plot(at, options.out / "cost.png")
    print(json.dumps(metrics, indent=2))


def write(folder: Path, ensemble: Ensemble, documents: dict[str, Any]) -> None:
    """Fills the version's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for recipe, member in zip(ensemble.recipes, ensemble.members, strict=True):
        member.write(folder / recipe.file)
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
