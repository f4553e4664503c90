"""Draws results: a benchmark's payload enters, a PNG leaves.

    python -m benchmarks.plot        # both pictures again, from results/*.json

Called by benchmarks/fraud.py and benchmarks/peers.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks.record import RESULTS

Row = dict[str, Any]
_BLUE, _RED = "#0b6e99", "#c2541b"
_COLOURS = {"Headroom": _BLUE, "Ray Serve": "#7b4fa3", "MLServer": "#8a6d1d", "bare uvicorn": "#777777"}
_STYLES = {"HTTP": "o-", "HTTP binary": "^:", "gRPC": "s--"}
_GREY = "#555555"
_WORTH_SAYING = 0.001


def plot_fraud(payload: dict[str, Any], file: Path) -> Path:
    """Latency against throughput in open loop, beside the published budget: batches of 32, and single HTTP requests."""
    figure = plt.figure(figsize=(14, 4.6), layout="constrained")
    first = figure.add_subplot(1, 3, 1)
    axes = (first, figure.add_subplot(1, 3, 2, sharey=first))
    budget_ms = payload["budget_ms"]
    for axis, kind, title in (
        (axes[0], "http", "single transactions, HTTP"),
        (axes[1], "batch", "batches of 32 (score:batch), HTTP"),
    ):
        rows = payload["curve"][kind] + ([payload["burst"]] if kind == "batch" else [])
        _draw_curve(axis, sorted(rows, key=lambda row: row["items_per_s"]), _BLUE)
        axis.axhline(budget_ms, color=_GREY, linestyle="--", linewidth=1)
        axis.annotate(f"published budget, p99: {budget_ms:g} ms", (0.02, budget_ms), xycoords=("axes fraction", "data"),
                      xytext=(0, 4), textcoords="offset points", fontsize=9, color=_GREY)  # fmt: skip
        _label(axis, title, "transactions answered per second")
    axes[0].set_ylabel("latency from the scheduled time, ms")
    axes[0].legend(frameon=False, loc="center left")
    _draw_stages(figure.add_subplot(1, 3, 3), payload["burst"]["stages"], payload["budgets"]["stages"])
    _title(figure, "fraud pipeline, one ingress replica, open loop", payload)
    return _save(figure, file)


def plot_peers(payload: dict[str, Any], file: Path) -> Path:
    """p50 and p99 of one-row infer against requests per second, a line per contestant through 1, 16, 64 connections."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, percentile in zip(axes, ("p50_ms", "p99_ms"), strict=True):
        for name, rows in payload["contestants"].items():
            rates, latencies = [row["ok_per_s"] for row in rows], [row[percentile] for row in rows]
            server, _, protocol = name.partition(", ")
            colour = _COLOURS[server]
            axis.plot(rates, latencies, _STYLES[protocol], color=colour, label=name, linewidth=1.4, markersize=5)
            for row, rate, latency in zip(rows, rates, latencies, strict=True):
                axis.annotate(str(row["connections"]), (rate, latency), xytext=(5, 3), textcoords="offset points",
                              fontsize=7, color=colour)  # fmt: skip
        axis.set_xscale("log")
        _label(axis, f"{percentile[:3]}, closed loop at 1, 16 and 64 connections", "requests answered per second")
    axes[0].set_ylabel("latency, ms")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    _title(figure, "one-row infer of the same model (400 trees, 30 features)", payload)
    return _save(figure, file)


def _draw_curve(axis: Axes, rows: Sequence[Row], colour: str) -> None:
    shown = [row for row in rows if row["p50_ms"] is not None]
    rates = [row["items_per_s"] for row in shown]
    axis.plot(rates, [row["p99_ms"] for row in shown], marker="o", color=colour, label="p99")
    axis.plot(rates, [row["p50_ms"] for row in shown], marker="o", color=colour, label="p50", alpha=0.45)
    for row in shown:
        answered = sum(row["by_status"].values()) + sum(row["failed"].values())
        refused = 1 - row["by_status"].get("200", 0) / answered
        if refused >= _WORTH_SAYING:
            axis.annotate(f"{refused:.1%} refused", (row["items_per_s"], row["p99_ms"]), xytext=(0, 6), fontsize=7,
                          textcoords="offset points", color=_RED, ha="center")  # fmt: skip


def _draw_stages(axis: Axes, stages: dict[str, dict[str, float]], budgets: dict[str, dict[str, float | None]]) -> None:
    """p50 and p99 of every stage at 10 000 transactions/s, and the stage's budget as a line."""
    names = [name for name in budgets if name in stages]
    for place, name in enumerate(reversed(names)):
        axis.barh(place, stages[name]["p99_ms"], height=0.6, color=_BLUE, label="p99" if place == 0 else None)
        axis.barh(place, stages[name]["p50_ms"], height=0.6, color="#9cc7d9", label="p50" if place == 0 else None)
        budget_ms = budgets[name]["budget_ms"]
        if budget_ms is not None:
            axis.plot([budget_ms, budget_ms], [place - 0.4, place + 0.4], color=_RED, linewidth=2,
                      label="budget" if name == names[-2] else None)  # fmt: skip
    axis.set_yticks(range(len(names)), reversed(names))
    axis.set_title("stages at 10 000 transactions/s", fontsize=10)
    axis.set_xlabel("milliseconds a batch")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.grid(visible=True, axis="x", which="major", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="upper right", fontsize=8)


def _label(axis: Axes, title: str, x_label: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x_label)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else ""))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
    if axis.get_xscale() == "linear":
        axis.set_xlim(left=0)
        axis.margins(x=0.08)
    axis.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _title(figure: Any, text: str, payload: dict[str, Any]) -> None:
    where = payload.get("machine", {})
    when = payload.get("date", "")[:10]
    place = f"{where['cpu']}, {where['cores']} cores, load generator included; {when}" if where else ""
    figure.suptitle(f"{text}\n{place}".strip(), fontsize=11)


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file


PLOTS = {"fraud": plot_fraud, "peers": plot_peers}


def main() -> None:
    """Draws what there are results for."""
    for name, plot in PLOTS.items():
        result = RESULTS / f"{name}.json"
        if result.exists():
            print(plot(json.loads(result.read_text()), result.with_suffix(".png")))


if __name__ == "__main__":
    main()
