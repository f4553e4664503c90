"""A real server, started as a user starts it (`serve run CONFIG`), on free ports and folders of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.subject import free_ports

ROOT = Path(__file__).resolve().parents[2]
READY_S = 150.0
BUDGET_MS = 2000.0
WIDE_BUDGETS = {
    "pipelines__fraud__budget_ms": BUDGET_MS,
    "pipelines__fraud__stages__explain": BUDGET_MS / 4,
    "pipelines__fraud__stages__decide": BUDGET_MS / 2,
}
"""Of the fraud pipeline, for servers whose answers are tested and not their speed: wide enough for a busy machine."""


def wait_until(is_done: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Polls a real condition; fails with its name."""
    give_up_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while time.monotonic() < give_up_s:
        result = is_done()
        if result:
            return result
        pause.wait(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Server:
    """One `serve run` and everything it starts."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self.folder = folder
        self.http_port, self.grpc_port, self.metrics_port, self.dashboard_port = free_ports(4)
        self.config_path = folder / "config.yaml"
        self.log_path = folder / "server.log"
        self.config: dict[str, Any]
        self.extra_environment: dict[str, str] = {}
        self.set_config(**overrides)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def args(self) -> dict[str, Any]:
        return self.config["applications"][0]["args"]

    @property
    def ingress(self) -> dict[str, Any]:
        return self.config["applications"][0]["deployments"][0]

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def features_dir(self) -> Path:
        return self.folder / "features"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def set_config(self, **overrides: Any) -> None:
        """serve_config.yaml with this server's ports and folders, and `overrides` of `args` by path (`a__b`)."""
        self.config = _config(self, overrides)
        self.write_config()

    def write_config(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.config))

    def launch(self) -> Server:
        """`serve run`, without waiting for anything."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "serve"), "run", str(self.config_path)],
                cwd=ROOT, env=self.environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def start(self, ready_s: float = READY_S) -> Server:
        """`serve run`, until it is ready."""
        self.launch().wait_until_ready(ready_s)
        return self

    def wait_until_ready(self, ready_s: float = READY_S) -> None:
        assert self._process is not None
        try:
            wait_until(self.is_ready_or_dead, ready_s, "the server is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}; its log ends:\n{self.tail()}") from None
        assert self._process.poll() is None, self.tail()

    def log_text(self) -> str:
        """What `serve run` and everything it started has said, replicas' logs included."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "token",
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **self.extra_environment,
        }

    def is_ready_or_dead(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or self.is_ready()

    def is_ready(self) -> bool:
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def tail(self) -> str:
        return self.log_text()[-3000:]

    def get(self, path: str, port: int | None = None) -> tuple[int, bytes]:
        return self.call("GET", path, None, port=port)[:2]

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer, got = self.call("POST", path, data, headers)
        return status, json.loads(answer) if answer[:1] in (b"{", b"[") else answer, got

    def call(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None, port: int | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port or self.http_port}{path}", data=body, headers=named, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the series of `/metrics` that carry these labels; 0 for none."""
        status, text = self.get("/metrics", self.metrics_port)
        assert status == 200, text
        samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def deploy(self) -> None:
        """`serve deploy` of the configuration as it is now."""
        self.write_config()
        subprocess.run(
            [str(Path(sys.executable).parent / "serve"), "deploy", str(self.config_path), "-a", self.dashboard()],
            cwd=ROOT, env=self.environment(), check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def dashboard(self) -> str:
        """Where `serve deploy` finds this cluster: said in the log of `serve run`."""
        log = re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_text(errors="replace"))
        found = re.search(r"dashboard at (http://[\d.]+:\d+)", log)
        assert found is not None, self.tail()
        return found[1]

    def replicas(self) -> list[psutil.Process]:
        """The ingress replicas' processes."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            try:
                name = " ".join(process.info["cmdline"] or [])
                if "ServeReplica" in name and "Ingress" in name and self._is_ours(process):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        assert self._process is not None
        return self._process.pid in [parent.pid for parent in process.parents()]

    def interrupt(self) -> int:
        """Ctrl-C, as a terminal sends it: to the whole process group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(60)

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        tree = psutil.Process(self._process.pid).children(recursive=True)
        try:
            self.interrupt()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in tree:
            if process.is_running():
                try:
                    process.kill()
                except psutil.Error:
                    continue


def _config(server: Server, overrides: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    args = config["applications"][0]["args"]
    args["listen"].update(http_port=server.http_port, grpc_port=server.grpc_port, metrics_port=server.metrics_port)
    args["features"]["path"] = str(server.folder / "features")
    args["run_dir"] = str(server.run_dir)
    for path, value in overrides.items():
        target = args
        *parents, last = path.split("__")
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value
    return config
