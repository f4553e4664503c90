"""What the server says about itself: metrics shared over its replicas, budgets against measured, the access log."""

from __future__ import annotations

from serve.observability.budget_report import BudgetReport, budget_report
from serve.observability.exposition import render
from serve.observability.folder import MetricsFolder, Snapshot
from serve.observability.logs import AccessEntry, AccessLog, configure_logging
from serve.observability.metrics import Metrics, PipelineMetrics

__all__ = [
    "AccessEntry",
    "AccessLog",
    "BudgetReport",
    "Metrics",
    "MetricsFolder",
    "PipelineMetrics",
    "Snapshot",
    "budget_report",
    "configure_logging",
    "render",
]
