"""Writes the README's figures: benchmarks/results/*.json and models' metrics.json enter, tables between
`<!-- figures:NAME -->` and `<!-- /figures -->` leave. Called by hand after a benchmark, and with `--check` by `make check`.

    python -m benchmarks.readme_tables [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.subject import ROOT

README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_GRPC_STATUSES = {"4": "DEADLINE_EXCEEDED", "8": "RESOURCE_EXHAUSTED", "14": "UNAVAILABLE"}
_TREE_ROWS = ("1", "16", "256", "4096")

Result = dict[str, Any]


def fraud(result: Result) -> str:
    """One line per row measured by our generator."""
    closed = result["closed_loop"]
    rows = [
        *closed["http"],
        result["bare_uvicorn"],
        *closed["grpc"],
        *closed["grpc_streams"],
        *closed["batch"],
        result["burst"],
        *result["grpc_bursts"],
        *result["overload"],
    ]
    head = ("load", "transactions/s", "p50 ms", "p99 ms", "refused", "server µs/request", "cores: server + generator")
    return _table(head, (_fraud_line(row) for row in rows))


def _fraud_line(row: Result) -> list[str]:
    goodput = f"; goodput {row['goodput_share']:.0%}" if "goodput_share" in row else ""
    return [
        f"{row['name']} ({row['loop']} loop{goodput})", _count(row["items_per_s"]), _ms(row["p50_ms"]),
        _ms(row["p99_ms"]), _refused(row), _count(row["server_cpu_us_per_request"]),
        f"{row['server_cores']:.2f} + {row['generator_cores']:.2f}",
    ]  # fmt: skip


def _refused(row: Result) -> str:
    """Answers that were no success by status, and what was not answered at all."""
    refused = {status: n for status, n in row["by_status"].items() if status not in ("200", "0")}
    total = sum(row["by_status"].values()) + sum(row["failed"].values())
    parts = [
        f"{n / total:.2%} {_GRPC_STATUSES.get(what, what)}" for what, n in [*refused.items(), *row["failed"].items()]
    ]
    return ", ".join(parts) or "0"


def peers(result: Result) -> str:
    """One line per contestant and number of connections."""
    head = ("server", "connections", "requests/s", "p50 ms", "p99 ms", "server CPU µs/request")
    return _table(head, (
        [name, str(row["connections"]), _count(row["ok_per_s"]), _ms(row["p50_ms"]), _ms(row["p99_ms"]),
         _count(row["server_cpu_us_per_request"])]
        for name, rows in result["contestants"].items() for row in rows
    ))  # fmt: skip


def transport(result: Result) -> str:
    """One line per server and number of streams, then a method that does nothing."""
    head = ("load", "requests/s", "p50 ms", "p99 ms", "refused or late", "server CPU µs/request")
    rows = [*result["infer"].values(), *(row for row in result["front_ends"]["rows"].values())]
    return _table(head, (
        [row["name"], _count(row["ok_per_s"]), _ms(row["p50_ms"]), _ms(row["p99_ms"]), _refused(row),
         _count(row["server_cpu_us_per_request"])] for row in rows
    ))  # fmt: skip


def trees(result: Result) -> str:
    """Median microseconds per call for a few batch sizes."""
    sizes = [size for size in _TREE_ROWS if size in result["rows"]]
    contestants = result["rows"][sizes[0]]
    head = ("one thread, median µs a call", *(f"{size} rows" if size != "1" else "1 row" for size in sizes))
    return _table(head, ([name, *(f"{result['rows'][size][name]['p50_us']:.1f}" for size in sizes)]
                         for name in contestants))  # fmt: skip


def profile(result: Result) -> str:
    """Shares of the GIL, and where threads are."""
    head = ("function group", "share of the GIL's time", "threads there")
    lines = ([row["group"], f"{row['share_of_gil']:.1%}", f"{row['threads_there']:.2f}"] for row in result["groups"])
    return _table(head, lines)


def fraud_model(metrics: Result) -> str:
    """The ensemble by the handbook's protocol, and what is shipped on the last weeks."""
    head = ("", "AUC-ROC", "average precision", "card precision@100")
    lines = [
        ("the handbook's split, the handbook's XGBoost (about)", "0.87", "0.69", "0.29"),
        ("the handbook's split, the ensemble", *_discrimination(metrics["handbook_week"]["ensemble"])),
        ("what is shipped, on the last three weeks", *_discrimination(metrics["test"])),
    ]
    return _table(head, lines)


def _discrimination(measures: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{measures[name]:.3f}" for name in ("auc_roc", "average_precision", "card_precision_at_100"))


TABLES: dict[str, Callable[[Result], str]] = {
    "fraud": fraud, "peers": peers, "transport": transport, "trees": trees, "profile": profile,
}  # fmt: skip
CARD_TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {"fraud_model": ("fraud_ensemble", fraud_model)}
"""Blocks that come from a model's metrics.json: the model, and what draws the table."""


def figures(name: str) -> str:
    """The table of one result and where it was measured; empty while there is no result. Raises KeyError."""
    if name in CARD_TABLES:
        model, of_card = CARD_TABLES[name]
        metrics = ROOT / "model_repository" / model / "1" / "metrics.json"
        return f"\n{of_card(json.loads(metrics.read_text(encoding='utf-8')))}\n\n"
    table, file = TABLES[name], RESULTS / f"{name}.json"
    if not file.exists():
        return ""
    result = json.loads(file.read_text(encoding="utf-8"))
    machine = result["machine"]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel'].partition('-')[0]}, "
        f"Python {machine['python']}, {result['date'][:10]}, commit {result['commit']}"
    )
    return f"\n{table(result)}\n\n{where}; `make bench NAME={name}`\n\n"


def rendered(text: str) -> str:
    """The README with every block's figures."""
    return _BLOCK.sub(lambda block: block[1] + figures(block[2]) + block[3], text)


def main() -> int:
    """Writes README.md, or with --check says whether it would change it (1)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when README.md is not current")
    options = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = rendered(before)
    if options.check:
        if before != after:
            print("README.md's figures differ from benchmarks/results; run python -m benchmarks.readme_tables")
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    rule = "|---|" + "---:|" * (len(titles) - 1)
    return "\n".join([_line(titles), rule, *(_line(line) for line in lines)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", " ")


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
