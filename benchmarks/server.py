"""Our server as a benchmark's subject: `serve run` of the project's own configuration on free ports, in a folder of
its own; what leaves is its addresses and, for any stretch of time, its stages' percentiles and how requests ended.

Used by every benchmark of a running server. One ingress replica, as the configuration says.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.subject import ROOT, Subject, free_ports
from serve.observability.families import BATCH_ITEMS, DEGRADED, MET, MISSED, REFUSALS, REFUSED, STAGE_DURATION
from serve.observability.folder import MetricsFolder, Snapshot
from serve.observability.latency import quantile_ns
from serve.observability.metrics import METRICS_FOLDER

RAY_ENVIRONMENT = {
    "RAY_ADDRESS": "local",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def is_replica(command_line: str) -> bool:
    """Whether a process of the tree is an ingress replica."""
    return "ServeReplica" in command_line and "Ingress" in command_line


class HeadroomServer(Subject):
    """`with HeadroomServer(folder) as server:` answers when the block begins. `listen` and `models` are added to what the
    configuration says of them.
    """

    def __init__(
        self, folder: Path, *, listen: Mapping[str, Any] | None = None, models: Mapping[str, Any] | None = None
    ) -> None:
        self._changes = (listen or {}, models or {})
        folder.mkdir(parents=True, exist_ok=True)
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.run_dir = folder / "run"
        config_path = folder / "serve_config.yaml"
        config_path.write_text(yaml.safe_dump(self._config(folder)))
        super().__init__(
            name="headroom",
            command=[str(Path(sys.executable).parent / "serve"), "run", str(config_path)],
            folder=folder,
            ready_url=f"http://127.0.0.1:{self.http_port}/v2/health/ready",
            environment=RAY_ENVIRONMENT,
            serves=is_replica,
        )

    def _config(self, folder: Path) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        args = config["applications"][0]["args"]
        args["listen"].update(http_port=self.http_port, grpc_port=self.grpc_port, metrics_port=self.metrics_port)
        listen, models = self._changes
        args["listen"].update(listen)
        args.setdefault("models", {}).update(models)
        args["features"]["path"] = str(folder / "features")
        args["run_dir"] = str(self.run_dir)
        return config

    def http(self, path: str) -> str:
        """An address of the HTTP port."""
        return f"http://127.0.0.1:{self.http_port}{path}"

    def grpc(self, method: str) -> str:
        """A method's address, as `headroom-load` and h2load take it."""
        return f"http://127.0.0.1:{self.grpc_port}/{method}"

    def budgets(self) -> dict[str, Any]:
        """`GET /v2/budgets`: the published budgets, beside what was measured in the last minute."""
        with urllib.request.urlopen(self.http("/v2/budgets"), timeout=10) as answer:
            report: dict[str, Any] = json.load(answer)["pipelines"]
        return report

    def reading(self) -> Snapshot:
        """The server's metrics now, as all its replicas have them."""
        return MetricsFolder(self.run_dir / METRICS_FOLDER).read(time.monotonic_ns())


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the server recorded between two readings: the series behind `GET /v2/budgets`, without its fixed minute."""

    before: Snapshot
    after: Snapshot

    def stages(self, pipeline: str) -> dict[str, dict[str, float]]:
        """`{stage: {p50_ms, p99_ms}}`; a stage's time is its batch's, counted for each item of the batch."""
        found = {}
        for (name, stage), slots in self.after.slots_of(STAGE_DURATION.name, STAGE_DURATION.num_slots).items():
            before = self.before.slots_of(STAGE_DURATION.name, STAGE_DURATION.num_slots).get((name, stage))
            counts = slots[1:] if before is None else slots[1:] - before[1:]
            p50_ns, p99_ns = quantile_ns(counts, 0.5), quantile_ns(counts, 0.99)
            if name == pipeline and p50_ns is not None and p99_ns is not None:
                found[stage] = {"p50_ms": round(p50_ns / 1e6, 3), "p99_ms": round(p99_ns / 1e6, 3)}
        return found

    def mean_batch_items(self, pipeline: str) -> float | None:
        """Items per executed batch; None when none was."""
        total, batches = 0.0, 0
        for sign, snapshot in ((1, self.after), (-1, self.before)):
            slots = snapshot.slots_of(BATCH_ITEMS.name, BATCH_ITEMS.num_slots).get((pipeline,))
            if slots is not None:
                total += sign * float(slots[:1].view("float64")[0])
                batches += sign * int(slots[1:].sum())
        return round(total / batches, 1) if batches else None

    def refusals(self, pipeline: str) -> dict[str, int]:
        """Refused requests by reason."""
        grown = self._grown(REFUSALS.name)
        return {reason: num for (name, reason), num in grown.items() if name == pipeline and num}

    def outcomes(self, pipeline: str) -> dict[str, int]:
        """Requests that met and missed the budget and that were refused; `degraded` are among the first two."""
        families = {"met": MET, "missed": MISSED, "degraded": DEGRADED, "refused": REFUSED}
        return {outcome: self._grown(family.name).get((pipeline,), 0) for outcome, family in families.items()}

    def _grown(self, name: str) -> dict[tuple[str, ...], int]:
        before, after = self.before.values_of(name), self.after.values_of(name)
        return {labels: int(value - before.get(labels, 0.0)) for labels, value in after.items()}
