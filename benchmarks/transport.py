"""How does the native gRPC transport compare with grpc.aio in its place, and with Triton and MLServer, on the same machine?

`infer`: one row of `creditcard` (400 trees, 30 features) a request, closed loop over 1, 16, 64 and 512 streams; then open
loop at 80 % of the peak, and at three times of it. `front ends`: a method that does nothing (`ServerLive`), and messages of
120 B, 4 KB and 1 MB that come back as they are, plain and over TLS. All servers run at once and take turns.

    python -m benchmarks transport [--quick]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import bodies, frontend
from benchmarks.generator import Load, write_bodies
from benchmarks.measure import Row, measure, median_row, save, show
from benchmarks.peers import GRPC_INFER, MODEL, MODEL_FILE, NUM_ROWS, PEERS, SEED, mlserver, peer_versions
from benchmarks.server import HeadroomServer
from benchmarks.subject import ROOT, Subject, environment_of, free_ports

TRITON = ROOT / ".build" / "peers" / "triton"
STREAMS = ((1, 1), (8, 2), (8, 8), (8, 64))
SIZES = {"120 B": 120, "4 KB": 4096, "1 MB": 1 << 20}
BUDGET_MS = 50.0
SERVER_LIVE = "inference.GRPCInferenceService/ServerLive"


def set_up() -> None:
    """Makes the peers' environments, once."""
    for peer in ("triton", "mlserver"):
        subprocess.run([str(PEERS / peer / "setup.sh"), sys.executable], check=True)


def triton(folder: Path) -> tuple[Subject, str]:
    """Triton 2.51 with the model behind its Python backend, and its gRPC address."""
    model = folder / "repository" / MODEL
    (model / "1").mkdir(parents=True)
    config = (PEERS / "triton" / MODEL / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("MODEL_FILE", str(MODEL_FILE)))
    shutil.copy(PEERS / "triton" / MODEL / "model.py", model / "1" / "model.py")
    http_port, grpc_port = free_ports(2)
    packages = next((TRITON / "lib").glob("python3*")) / "site-packages"
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    subject = Subject(
        "Triton",
        [
            str(TRITON / "tritonserver" / "bin" / "tritonserver"), "--model-repository", str(model.parent),
            "--backend-directory", str(TRITON / "tritonserver" / "backends"), "--http-address", "127.0.0.1",
            "--grpc-address", "127.0.0.1", "--http-port", str(http_port), "--grpc-port", str(grpc_port),
            "--allow-metrics", "false",
        ],
        folder, f"http://127.0.0.1:{http_port}/v2/models/{MODEL}/ready",
        environment={"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(packages)},
    )  # fmt: skip
    return subject, f"http://127.0.0.1:{grpc_port}"


class Frontend(Subject):
    """`benchmarks.frontend`, ready when its port takes a call."""

    def __init__(
        self, kind: str, folder: Path, *, certificates: Path | None = None, busy_switch_ms: float | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        words = [kind, str(self.port)]
        if certificates is not None:
            words += ["--certificates", str(certificates)]
        if busy_switch_ms is not None:
            words += ["--busy-switch-ms", str(busy_switch_ms)]
        self.scheme = "https" if certificates else "http"
        super().__init__(
            f"front end, {kind}", [sys.executable, "-m", "benchmarks.frontend", *words], folder, self.url,
            ready_body=b"",
        )  # fmt: skip

    @property
    def url(self) -> str:
        """The echo method."""
        return f"{self.scheme}://127.0.0.1:{self.port}/{frontend.METHOD}"

    def _wait_until_ready(self) -> None:
        import grpc

        target = f"127.0.0.1:{self.port}"
        if self.scheme == "https":
            pem = (self.folder / "server.pem").read_bytes()
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(pem))
        else:
            channel = grpc.insecure_channel(target)
        with channel:
            grpc.channel_ready_future(channel).result(timeout=60)


def certificates(folder: Path) -> Path:
    """A key and a certificate that it has signed itself."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", "server.key", "-out", "server.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def over(rounds: int, asked: dict[str, tuple[Subject, Load]]) -> dict[str, Row]:
    """Every row once a round, in turns; the medians."""
    found: dict[str, list[Row]] = {name: [] for name in asked}
    for number in range(rounds):
        for name, (subject, load) in asked.items():
            row = measure(subject, load)
            row["name"], row["streams"] = f"round {number + 1}: {name}", load.connections * load.streams
            show(row)
            found[name].append(row)
    return {name: {**median_row(rows), "name": name} for name, rows in found.items()}


def h2load(subject: Subject, url: str, body: bytes, folder: Path, *, streams: tuple[int, int], seconds: float) -> Row:
    """Requests per second by h2load, which speaks TLS."""
    file = folder / "h2load.bin"
    file.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    connections, each = streams
    done = subprocess.run(
        ["h2load", "-D", str(max(1, round(seconds))), f"-c{connections}", f"-m{each}", "-H",
         "content-type: application/grpc",
         "-H", "te: trailers", "-w20", "-W24", "-d", str(file), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", done.stdout)
    failed = re.search(r"(\d+) failed, (\d+) errored", done.stdout)
    assert rate is not None
    assert failed is not None
    return {"name": subject.name, "ok_per_s": float(rate[1]), "failed": int(failed[1]), "streams": connections * each}


def tls_rows(plain: Frontend, secure: Frontend, folder: Path, rounds: int, seconds: float) -> dict[str, Row]:
    """Plain and TLS by the same generator, in turns."""
    found: dict[str, list[Row]] = {}
    for _ in range(rounds):
        for size, num_bytes in SIZES.items():
            for how, subject in (("plain", plain), ("TLS", secure)):
                streams = (4, 1) if num_bytes >= 1 << 20 else (8, 8)
                row = h2load(subject, subject.url, bytes(num_bytes), folder, streams=streams, seconds=seconds)
                print(f"  h2load, {size}, {how}: {row['ok_per_s']:.0f}/s", flush=True)
                found.setdefault(f"{size}, {how}", []).append(row)
    return {name: {**median_row(rows), "name": name} for name, rows in found.items()}


def ratio(rows: dict[str, Row], ours: str, theirs: str, figure: str = "ok_per_s") -> float | None:
    """Ours over theirs."""
    if not (rows.get(ours) and rows.get(theirs) and rows[theirs][figure]):
        return None
    return round(float(rows[ours][figure]) / float(rows[theirs][figure]), 2)


def infer(
    asked: dict[str, tuple[Subject, Load]], rounds: int, seconds: float
) -> tuple[dict[str, Row], dict[str, dict[str, float | None]]]:
    """The model over every number of streams; and how many times faster than each peer."""
    loads = {
        f"{name}, streams: {c * m}": (subject, replace(load, connections=c, streams=m, duration_s=seconds))
        for c, m in STREAMS for name, (subject, load) in asked.items()
        if not (name in ("MLServer", "Headroom, grpc.aio") and c * m > 64)  # which answer few in time
    }  # fmt: skip
    rows = over(rounds, loads)
    ratios = {
        f"streams: {c * m}": {
            "requests over Triton's": ratio(rows, f"Headroom, streams: {c * m}", f"Triton, streams: {c * m}"),
            "p50 over Triton's": ratio(rows, f"Headroom, streams: {c * m}", f"Triton, streams: {c * m}", "p50_ms"),
            "requests over grpc.aio's": ratio(rows, f"Headroom, streams: {c * m}", f"Headroom, grpc.aio, streams: {c * m}"),
        } for c, m in STREAMS
    }  # fmt: skip
    return rows, ratios


def open_loop(subject: Subject, load: Load, peak: float, rounds: int, seconds: float) -> dict[str, Row]:
    """At 80 % of the peak, and at three times of it."""
    load = replace(load, connections=8, streams=256, duration_s=seconds, deadline_ms=BUDGET_MS)
    rows = over(rounds, {
        f"open loop, {share:.0%} of peak": (subject, replace(load, rate=peak * share)) for share in (0.8, 3.0)
    })  # fmt: skip
    for row in rows.values():
        row["goodput_over_peak"] = round(row["goodput_per_s"] / peak, 3)
    return rows


def front_ends(
    stack: ExitStack, folder: Path, live: Iterable[tuple[str, Subject, str]], rounds: int, seconds: float
) -> dict[str, Any]:
    """`ServerLive` of whole servers; echoes of both listeners; TLS beside plain."""
    empty = write_bodies(folder / "empty.bin", [b""])
    load = Load("", empty, 8, seconds, warmup_s=1.0, protocol="grpc", streams=8)
    lives = over(rounds, {
        f"ServerLive, {name}": (subject, replace(load, url=f"{url}/{SERVER_LIVE}")) for name, subject, url in live
    })  # fmt: skip
    keys = certificates(folder / "keys")
    native = stack.enter_context(Frontend("native", folder / "native"))
    aio = stack.enter_context(Frontend("aio", folder / "aio"))
    secure = stack.enter_context(Frontend("native", keys, certificates=keys))
    echoes: dict[str, tuple[Subject, Load]] = {}
    for size, num_bytes in SIZES.items():
        file = write_bodies(folder / f"{num_bytes}.bin", [bytes(num_bytes)])
        connections, streams = (4, 1) if num_bytes >= 1 << 20 else (8, 8)
        for name, subject in (("native", native), ("grpc.aio", aio)):
            echoes[f"echo {size}, {name}"] = (
                subject, replace(load, url=subject.url, bodies=file, connections=connections, streams=streams),
            )  # fmt: skip
    rows = over(rounds, echoes)
    tls = tls_rows(native, secure, folder, rounds, seconds)
    return {
        "rows": {**lives, **rows}, "tls": tls,
        "native_over_aio": {size: ratio(rows, f"echo {size}, native", f"echo {size}, grpc.aio") for size in SIZES},
        "tls_over_plain": {size: ratio(tls, f"{size}, TLS", f"{size}, plain") for size in SIZES},
        "gb_per_s_each_way": {
            size: round(rows[f"echo {size}, native"]["ok_per_s"] * SIZES[size] / 1e9, 3) for size in SIZES
        },
    }  # fmt: skip


def main() -> None:
    """Sets the peers up, starts everything, measures, writes results/transport.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, not written to results/")
    options = parser.parse_args()
    rounds, seconds = (1, 1.5) if options.quick else (3, 4.0)
    set_up()
    with tempfile.TemporaryDirectory(prefix="headroom-transport-") as name, ExitStack() as stack:
        folder = Path(name)
        as_grpc = write_bodies(folder / "infer.bin", bodies.infer_grpc(bodies.card_rows(SEED, NUM_ROWS), MODEL))
        models = {MODEL: {"budget_ms": BUDGET_MS}}
        native = stack.enter_context(HeadroomServer(folder / "headroom", models=models))
        aio = stack.enter_context(
            HeadroomServer(folder / "aio-server", models=models, listen={"grpc_transport": "aio"})
        )
        their, their_url = triton(folder / "triton")
        stack.enter_context(their)
        ml, ml_url = mlserver(folder / "mlserver")
        stack.enter_context(ml)
        load = Load("", as_grpc, 1, seconds, warmup_s=1.0, protocol="grpc")
        asked = {
            "Headroom": (native, replace(load, url=native.grpc(GRPC_INFER))),
            "Headroom, grpc.aio": (aio, replace(load, url=aio.grpc(GRPC_INFER))),
            "Triton": (their, replace(load, url=f"{their_url}/{GRPC_INFER}")),
            "MLServer": (ml, replace(load, url=ml_url)),
        }
        rows, ratios = infer(asked, rounds, seconds)
        peak = max(row["ok_per_s"] for name, row in rows.items() if name.startswith("Headroom, streams"))
        opened = open_loop(*asked["Headroom"], peak, rounds, seconds)
        live = [
            ("native", native, native.grpc("")[:-1]),
            ("grpc.aio", aio, aio.grpc("")[:-1]),
            ("Triton", their, their_url),
        ]
        fronts = front_ends(stack, folder, live, rounds, seconds)
        payload = {
            "question": "how does the native gRPC transport compare with grpc.aio, Triton and MLServer?",
            "rounds": rounds, "row_s": seconds, "servers": {"headroom": environment_of(native)},
            "infer": {**rows, **opened}, "infer_ratios": ratios, "front_ends": fronts,
            "peer_versions": peer_versions("triton", "mlserver"),
        }  # fmt: skip
    print(f"written to {save('transport', payload, is_quick=options.quick)}")
    print(ratios, fronts["native_over_aio"], fronts["tls_over_plain"], fronts["gb_per_s_each_way"])


if __name__ == "__main__":
    main()
