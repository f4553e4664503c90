"""Rebuilds `1/` from the Fraud Detection Handbook's simulated transactions; the card beside this file has the results.

    python model_repository/fraud_xgboost/train.py --data FOLDER_WITH_transactions.parquet [--out FOLDER]

Takes `transactions.parquet` (TX_DATETIME, CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT, TX_FRAUD, TX_FRAUD_SCENARIO); leaves
xgboost.ubj (the trees), policy.json (what the fraud pipeline decides by) and metrics.json. The same data gives the same
bytes: one to two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, it finds the features the server computes

from serve.features.backfill import backfill
from serve.features.windows import FEATURES, to_ten_thousandths

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

DAY_S = 86_400
# Days since the first. Labels arrive 7 days late: that long, nothing trains, and no threshold is chosen.
PERIODS = {"train": (30, 106), "validation": (113, 127), "test": (134, 155)}
FALSE_POSITIVE_COST, FALSE_NEGATIVE_COST = 50, 500
NUM_TREES = 300
PARAMETERS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_depth": 6,
    "eta": 0.05,
    "min_child_weight": 5,
    "nthread": 2,
    "seed": 7,
}
SCENARIOS = {1: "amount over 220", 2: "compromised terminal", 3: "compromised card"}
CARDS_A_DAY = 100


@dataclass(frozen=True, slots=True)
class History:
    """Every transaction in time order, with the features the server would have had."""

    rows: Floats
    customer_id: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]
    is_fraud: Flags
    scenario: npt.NDArray[np.int8]

    def period(self, name: str) -> History:
        """The transactions of one of `PERIODS`."""
        begin, end = PERIODS[name]
        inside = (self.day >= begin) & (self.day < end)
        columns = (self.rows, self.customer_id, self.day, self.is_fraud, self.scenario)
        return History(*(column[inside] for column in columns))


def load(folder: Path) -> History:
    """Reads the transactions and computes their features, point in time."""
    import pandas as pd

    table = pd.read_parquet(folder / "transactions.parquet").sort_values("TX_DATETIME", kind="stable")
    event_s = table["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    amount_e4 = to_ten_thousandths(table["TX_AMOUNT"].to_numpy(np.float64))
    customer_id = table["CUSTOMER_ID"].to_numpy(np.int64)
    return History(
        rows=backfill(customer_id, table["TERMINAL_ID"].to_numpy(), event_s, amount_e4).rows,
        customer_id=customer_id,
        day=event_s // DAY_S - event_s[0] // DAY_S,
        is_fraud=table["TX_FRAUD"].to_numpy() == 1,
        scenario=table["TX_FRAUD_SCENARIO"].to_numpy(np.int8),
    )


def fit(train: History) -> Any:
    """The booster, from the training period's rows alone (`PARAMETERS` were chosen on validation, see the card)."""
    import xgboost

    return xgboost.train(PARAMETERS, xgboost.DMatrix(train.rows, train.is_fraud), NUM_TREES)


def predict(booster: Any, history: History) -> Floats:
    """Probability of fraud, in the order of the rows."""
    import xgboost

    return np.asarray(booster.predict(xgboost.DMatrix(history.rows)), np.float32)


def thresholds(probability: Floats, is_fraud: Flags) -> tuple[float, float]:
    """Where review and decline begin, on validation.

    Review: where cost (50 for a good transaction stopped, 500 for a fraud let through) is least, if all above stops.
    Decline: the lowest probability from which 10 of 11 are fraud, which pays even with the two costs exchanged.
    """
    order = np.argsort(-probability, kind="stable")
    sorted_probability = probability[order]
    frauds = np.cumsum(is_fraud[order])
    stopped = np.arange(1, len(order) + 1)
    is_cut = np.append(sorted_probability[1:] != sorted_probability[:-1], True)  # ties stop together
    cost = FALSE_POSITIVE_COST * (stopped - frauds) + FALSE_NEGATIVE_COST * (frauds[-1] - frauds)
    review = np.argmin(np.where(is_cut, cost, cost.max() + 1))
    pays = FALSE_NEGATIVE_COST * (stopped - frauds) <= FALSE_POSITIVE_COST * frauds
    decline = np.flatnonzero(is_cut & pays)[-1]
    return float(sorted_probability[review]), float(sorted_probability[decline])


def policy(train: History, review_at: float, decline_at: float) -> dict[str, Any]:
    """What the pipeline decides by; `group_averages` stand in for features that cannot be read."""
    if not 0 < review_at < decline_at < 1:
        raise SystemExit(f"review at {review_at}, decline at {decline_at}; allowed: 0 < review < decline < 1")
    averages = np.nanmean(train.rows.astype(np.float64), axis=0)
    return {
        "features": list(FEATURES),
        "review_at": review_at,
        "decline_at": decline_at,
        "risk_levels": [review_at / 2, review_at, decline_at],
        "group_averages": [round(average, 6) for average in averages.tolist()],
    }


def card_precision(probability: Floats, history: History) -> float:
    """Share of true frauds among each day's 100 most suspected cards, averaged; a card once caught is blocked."""
    caught: set[int] = set()
    precisions = []
    for day in np.unique(history.day):
        today = history.day == day
        cards, card = np.unique(history.customer_id[today], return_inverse=True)
        suspicion = np.zeros(len(cards))
        np.maximum.at(suspicion, card, probability[today])
        is_compromised = np.bincount(card, history.is_fraud[today]) > 0
        suspicion[np.isin(cards, list(caught))] = -1
        top = np.argsort(-suspicion, kind="stable")[:CARDS_A_DAY]
        precisions.append(is_compromised[top].mean())
        caught.update(cards[top][is_compromised[top]].tolist())
    return float(np.mean(precisions))


def evaluate(probability: Floats, history: History, review_at: float, decline_at: float) -> dict[str, Any]:
    """Metrics of one period, as they stand in the card."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    def stops(at: float) -> dict[str, float]:
        stopped = probability >= at
        return {
            "share_of_transactions": round(float(stopped.mean()), 5),
            "false_positive_rate": round(float(stopped[~history.is_fraud].mean()), 5),
            "precision": round(float(history.is_fraud[stopped].mean()), 4),
            "recall": round(float(stopped[history.is_fraud].mean()), 4),
            **{f"recall_scenario_{s}": round(float(stopped[history.scenario == s].mean()), 4) for s in SCENARIOS},
        }

    def scenario_auc(scenario: int) -> float:
        shown = ~history.is_fraud | (history.scenario == scenario)
        return round(float(roc_auc_score(history.is_fraud[shown], probability[shown])), 4)

    missed = int((history.is_fraud & (probability < review_at)).sum())
    false_alarms = int((~history.is_fraud & (probability >= review_at)).sum())
    return {
        "transactions": len(probability),
        "frauds": int(history.is_fraud.sum()),
        "auc_roc": round(float(roc_auc_score(history.is_fraud, probability)), 4),
        "average_precision": round(float(average_precision_score(history.is_fraud, probability)), 4),
        "card_precision_at_100": round(card_precision(probability, history), 4),
        "cost": FALSE_POSITIVE_COST * false_alarms + FALSE_NEGATIVE_COST * missed,
        "cost_of_stopping_nothing": FALSE_NEGATIVE_COST * int(history.is_fraud.sum()),
        "review_or_decline": stops(review_at),
        "decline": stops(decline_at),
        "auc_roc_by_scenario": {name: scenario_auc(scenario) for scenario, name in SCENARIOS.items()},
    }


def main() -> None:
    """Trains, chooses the thresholds, evaluates, writes."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with transactions.parquet")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "1", help="where the artefacts go")
    options = arguments.parse_args()
    print("computing features of the whole history", flush=True)
    history = load(options.data)
    train, validation, test = (history.period(name) for name in PERIODS)
    print(f"training {NUM_TREES} trees on {len(train.rows)} transactions", flush=True)
    booster = fit(train)
    probability = predict(booster, validation)
    review_at, decline_at = thresholds(probability, validation.is_fraud)
    metrics = {
        "validation": evaluate(probability, validation, review_at, decline_at),
        "test": evaluate(predict(booster, test), test, review_at, decline_at),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    booster.save_model(options.out / "xgboost.ubj")
    for name, content in (("policy", policy(train, review_at, decline_at)), ("metrics", metrics)):
        (options.out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
