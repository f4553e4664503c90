"""How does one-row infer of one tree model compare with stock Ray Serve and MLServer, on the same machine at the same time?
And with the limit, a uvicorn that does nothing?

`creditcard` (400 trees, 30 features), one row a request, closed loop at 1, 16 and 64 connections. All servers run at
once and take turns (A B C A B C …); figures are medians of three rounds. Over HTTP all get the same JSON bytes.

    python -m benchmarks peers [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks import bodies
from benchmarks.generator import Load, write_bodies
from benchmarks.limit import bare_uvicorn
from benchmarks.measure import Row, measure, median_row, save, show
from benchmarks.plot import plot_peers
from benchmarks.server import RAY_ENVIRONMENT, HeadroomServer
from benchmarks.subject import ROOT, Subject, environment_of, free_ports

MODEL = "creditcard"
MODEL_FILE = ROOT / "model_repository" / MODEL / "1" / "xgboost.ubj"
PEERS = ROOT / "benchmarks" / "peers"
MLSERVER_VENV = ROOT / ".build" / "peers" / "mlserver"
INFER = f"/v2/models/{MODEL}/infer"
GRPC_INFER = "inference.GRPCInferenceService/ModelInfer"
JSON = ("content-type: application/json",)
CONNECTIONS = (1, 16, 64)
NUM_ROWS = 4_096
SEED = 1
_PEER_PACKAGES = ("ray[serve]", "mlserver", "mlserver-xgboost", "xgboost-cpu", "nvidia-pytriton")


def set_up() -> None:
    """Makes the peers' environments, once; raises CalledProcessError when one cannot be made."""
    for peer in ("ray_serve", "mlserver"):
        subprocess.run([str(PEERS / peer / "setup.sh"), sys.executable], check=True)


def ray_serve(folder: Path, first_body: bytes) -> Subject:
    """Stock Ray Serve: its own HTTP proxy, one replica. Its health is answered before the application is there, so it
    is ready when it answers `first_body`.
    """
    folder.mkdir()
    (port,) = free_ports(1)
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump({
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"enable_access_log": False},
        "applications": [{
            "name": "peer", "route_prefix": INFER, "import_path": "app:build",
            "args": {"path": str(MODEL_FILE)},
        }],
    }))  # fmt: skip
    return Subject(
        "Ray Serve", [str(Path(sys.executable).parent / "serve"), "run", str(config)], folder,
        f"http://127.0.0.1:{port}{INFER}", first_body, {**RAY_ENVIRONMENT, "PYTHONPATH": str(PEERS / "ray_serve")},
        lambda line: "ServeReplica" in line or "ProxyActor" in line,
    )  # fmt: skip


def mlserver(folder: Path) -> tuple[Subject, str]:
    """MLServer with its XGBoost runtime, inference in the serving process, and its gRPC address."""
    model = folder / MODEL
    model.mkdir(parents=True)
    http_port, grpc_port, metrics_port = free_ports(3)
    shutil.copy(MODEL_FILE, model / "model.ubj")
    _write_json(folder / "settings.json", {
        "host": "127.0.0.1", "http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port,
        "parallel_workers": 0, "debug": False,
    })  # fmt: skip
    _write_json(model / "model-settings.json", {
        "name": MODEL, "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": "./model.ubj", "version": "1"},
    })  # fmt: skip
    subject = Subject(
        "MLServer", [str(MLSERVER_VENV / "bin" / "mlserver"), "start", str(folder)], folder,
        f"http://127.0.0.1:{http_port}/v2/models/{MODEL}/ready",
    )  # fmt: skip
    return subject, f"http://127.0.0.1:{grpc_port}/{GRPC_INFER}"


def contestants(stack: ExitStack, folder: Path) -> dict[str, tuple[Subject, Load]]:
    """Starts every server, one after the other; the way to ask each, by name."""
    rows = bodies.card_rows(SEED, NUM_ROWS)
    as_json = write_bodies(folder / "json.bin", bodies.infer_json(rows))
    as_grpc = write_bodies(folder / "grpc.bin", bodies.infer_grpc(rows, MODEL))
    binary, head_bytes = bodies.infer_binary(rows)
    as_binary = write_bodies(folder / "binary.bin", binary)
    ours = stack.enter_context(HeadroomServer(folder / "headroom"))
    ray = stack.enter_context(ray_serve(folder / "ray_serve", next(bodies.infer_json(rows))))
    ml, ml_grpc = mlserver(folder / "mlserver")
    stack.enter_context(ml)
    echo = stack.enter_context(bare_uvicorn(folder / "echo"))
    http = Load("", as_json, 1, 0, headers=JSON)
    grpc = Load("", as_grpc, 1, 0, protocol="grpc")
    return {
        "Headroom, HTTP": (ours, replace(http, url=ours.http(INFER))),
        "Headroom, HTTP binary": (ours, replace(
            http, url=ours.http(INFER), bodies=as_binary,
            headers=("content-type: application/octet-stream", f"inference-header-content-length: {head_bytes}"),
        )),
        "Headroom, gRPC": (ours, replace(grpc, url=ours.grpc(GRPC_INFER))),
        "Ray Serve, HTTP": (ray, replace(http, url=ray.ready_url)),
        "MLServer, HTTP": (ml, replace(http, url=ml.ready_url.replace("/ready", "/infer"))),
        "MLServer, gRPC": (ml, replace(grpc, url=ml_grpc)),
        "bare uvicorn, HTTP": (echo, replace(http, url=echo.ready_url)),
    }  # fmt: skip


def measure_all(asked: dict[str, tuple[Subject, Load]], num_rounds: int, seconds: float) -> dict[str, list[Row]]:
    """Per contestant one row for each number of connections, the median of the rounds."""
    rounds: dict[tuple[str, int], list[Row]] = {}
    for number in range(num_rounds):
        for connections in CONNECTIONS:
            for name, (subject, load) in asked.items():
                row = measure(subject, replace(load, connections=connections, duration_s=seconds, warmup_s=1.0))
                row["name"] = f"round {number + 1}: {name}, connections: {connections}"
                show(row)
                rounds.setdefault((name, connections), []).append(row)
    return {
        name: [{**median_row(rounds[name, n]), "name": f"{name}, connections: {n}"} for n in CONNECTIONS]
        for name in asked
    }


def ratios(figures: dict[str, list[Row]]) -> dict[str, dict[str, float]]:
    """Requests per second of ours over each peer's, the same protocol, by connections."""
    found = {}
    for name, rows in figures.items():
        if not name.startswith("Headroom"):
            ours = figures["Headroom, " + name.rpartition(", ")[2]]
            found[name] = {
                str(row["connections"]): round(mine["ok_per_s"] / row["ok_per_s"], 2)
                for mine, row in zip(ours, rows, strict=True) if row["ok_per_s"]
            }  # fmt: skip
    return found


def main() -> None:
    """Sets the peers up, starts everything, measures, writes results/peers.json and peers.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, not written to results/")
    options = parser.parse_args()
    num_rounds, seconds = (1, 1.5) if options.quick else (3, 5.0)
    set_up()
    with tempfile.TemporaryDirectory(prefix="headroom-peers-") as name, ExitStack() as stack:
        asked = contestants(stack, Path(name))
        subjects = {subject.name: subject for subject, _ in asked.values()}
        print(
            "running: " + ", ".join(f"{s.name} (ready after {s.start_s:.0f} s)" for s in subjects.values()), flush=True
        )
        figures = measure_all(asked, num_rounds, seconds)
        payload = {
            "question": "how does one-row infer compare with stock Ray Serve and MLServer?",
            "rounds": num_rounds, "row_s": seconds,
            "servers": {name: environment_of(subject) for name, subject in subjects.items()},
            "peer_versions": peer_versions("ray_serve", "mlserver"),
            "contestants": figures, "headroom_over_peer": ratios(figures),
        }  # fmt: skip
    file = save("peers", payload, is_quick=options.quick)
    print(f"written to {file} and {plot_peers(json.loads(file.read_text()), file.with_suffix('.png'))}")


def peer_versions(*peers: str) -> dict[str, str]:
    """What those peers ran, from their pinned requirements."""
    pinned = {}
    for peer in peers:
        for line in (PEERS / peer / "requirements.txt").read_text().splitlines():
            package, _, version = line.partition("==")
            if package in _PEER_PACKAGES:
                pinned[package] = version
    return pinned


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value))


if __name__ == "__main__":
    main()
