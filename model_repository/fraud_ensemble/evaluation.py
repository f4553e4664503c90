"""What the card says: metrics, thresholds by cost, the handbook's own protocol, and what drift is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from history import SCENARIOS, Flags, Floats, History

CARDS_A_DAY = 100
DELAY_DAYS = 7
HANDBOOK_TRAIN, HANDBOOK_TEST = (115, 122), (129, 136)
"""Days since 2018-04-01: 25 to 31 July, and 8 to 14 August."""
NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one transaction decided wrongly."""

    false_positive: float
    false_negative: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where review and decline begin, as probabilities."""

    review: float
    decline: float


@dataclass(frozen=True, slots=True)
class CostCurve:
    """What it costs to stop everything from a probability on, over all probabilities a period has, highest first."""

    threshold: Floats
    cost: Floats

    @classmethod
    def of(cls, probability: Floats, is_fraud: Flags, costs: Costs) -> CostCurve:
        """Of one period; transactions of one probability stop together."""
        order = np.argsort(-probability, kind="stable")
        frauds, stopped = np.cumsum(is_fraud[order]), np.arange(1, len(order) + 1)
        is_cut = np.append(np.diff(probability[order]) != 0, True)
        cost = costs.false_positive * (stopped - frauds) + costs.false_negative * (frauds[-1] - frauds)
        return cls(probability[order][is_cut], cost[is_cut])

    def plot(self, thresholds: Thresholds, path: Path) -> None:
        """The curve of the card."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
        axes.plot(self.threshold, self.cost / 1e3, color="#2b5c8a")
        for name, at in (("review", thresholds.review), ("decline", thresholds.decline)):
            axes.axvline(at, color="#a33", linestyle=":")
            axes.annotate(f"{name} from {at:.3f}", (at, axes.get_ylim()[1] * 0.95), rotation=90, ha="right", va="top")
        axes.set(xscale="log", xlabel="stopped from this probability on", ylabel="cost, thousands", xlim=(1e-3, 1))
        axes.set_title("Cost of the validation period against the threshold", loc="left", fontsize=10)
        figure.savefig(path, dpi=120)


def choose_thresholds(probability: Floats, is_fraud: Flags, costs: Costs) -> Thresholds:
    """Review: where the cost is least, if everything from there on is stopped. Decline: the lowest probability from
    which stopping pays even with the two costs exchanged, 10 frauds for a good transaction at 50 and 500.
    """
    curve = CostCurve.of(probability, is_fraud, costs)
    exchanged = CostCurve.of(probability, is_fraud, Costs(costs.false_negative, costs.false_positive))
    nothing = costs.false_positive * is_fraud.sum()
    pays = np.flatnonzero(exchanged.cost <= nothing)
    found = Thresholds(
        float(curve.threshold[np.argmin(curve.cost)]), float(curve.threshold[pays[-1]]) if len(pays) else 1.0
    )
    if not 0 < found.review < found.decline < 1:
        raise SystemExit(f"thresholds are {found}; allowed: 0 < review < decline < 1")
    return found


def policy(features: list[str], thresholds: Thresholds, fill: Floats) -> dict[str, Any]:
    """What the pipeline decides by; `group_averages` stand in for features that cannot be read."""
    return {
        "features": features,
        "review_at": thresholds.review,
        "decline_at": thresholds.decline,
        "risk_levels": [thresholds.review / 2, thresholds.review, thresholds.decline],
        "group_averages": [round(float(value), 6) for value in fill],
    }


def drift_reference(features: list[str], rows: Floats, probability: Floats) -> dict[str, Any]:
    """Ten parts of equal size of each feature and of the score, and the share that falls into each; where many rows have
    one value, fewer parts. The last share is of missing values.
    """

    def parts(column: Floats) -> dict[str, list[float]]:
        known = column[~np.isnan(column)]
        edges = np.unique(np.quantile(known, np.arange(1, NUM_BINS) / NUM_BINS)).astype(np.float32)
        counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
        shares = np.append(counts, len(column) - len(known)) / len(column)
        return {"edges": edges.tolist(), "shares": [round(share, 6) for share in shares.tolist()]}

    return {"features": {name: parts(rows[:, i]) for i, name in enumerate(features)}, "score": parts(probability)}


def discrimination(probability: Floats, history: History) -> dict[str, float]:
    """Metrics that need no threshold."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "transactions": len(probability),
        "frauds": int(history.is_fraud.sum()),
        "auc_roc": round(float(roc_auc_score(history.is_fraud, probability)), 4),
        "average_precision": round(float(average_precision_score(history.is_fraud, probability)), 4),
        "card_precision_at_100": round(card_precision(probability, history), 4),
    }


def evaluate(probability: Floats, history: History, at: Thresholds, costs: Costs) -> dict[str, Any]:
    """Metrics of one period, as they stand in the card."""
    from sklearn.metrics import roc_auc_score

    def stops(threshold: float) -> dict[str, float]:
        stopped = probability >= threshold
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

    missed = int((history.is_fraud & (probability < at.review)).sum())
    false_alarms = int((~history.is_fraud & (probability >= at.review)).sum())
    return {
        **discrimination(probability, history),
        "cost": costs.false_positive * false_alarms + costs.false_negative * missed,
        "cost_of_stopping_nothing": costs.false_negative * int(history.is_fraud.sum()),
        "review_or_decline": stops(at.review),
        "decline": stops(at.decline),
        "auc_roc_by_scenario": {name: scenario_auc(scenario) for scenario, name in SCENARIOS.items()},
    }


def card_precision(probability: Floats, history: History) -> float:
    """Share of defrauded cards among each day's 100 most suspected, averaged over days; a card once caught is blocked.

    The handbook's CP@100: a card is suspected as much as its most suspected transaction of the day.
    """
    caught: set[int] = set()
    precisions = []
    for day in np.unique(history.day):
        today = history.day == day
        cards, card = np.unique(history.customer_id[today], return_inverse=True)
        suspicion = np.zeros(len(cards))
        np.maximum.at(suspicion, card, probability[today])
        is_defrauded = np.bincount(card, history.is_fraud[today]) > 0
        suspicion[np.isin(cards, list(caught))] = -1
        top = np.argsort(-suspicion, kind="stable")[:CARDS_A_DAY]
        precisions.append(is_defrauded[top].mean())
        caught.update(cards[top][is_defrauded[top]].tolist())
    return float(np.mean(precisions))


def handbook_test(history: History) -> History:
    """The handbook's test week: without cards known to be defrauded by then, that is in the training week or, for each
    day, up to `DELAY_DAYS` before it.
    """
    known = history.days(*HANDBOOK_TRAIN).frauds_customers()
    kept = np.zeros(len(history.day), np.bool_)
    for day in range(*HANDBOOK_TEST):
        known |= history.days(day - DELAY_DAYS - 1, day - DELAY_DAYS).frauds_customers()
        kept |= (history.day == day) & ~np.isin(history.customer_id, list(known))
    return history.where(kept)
