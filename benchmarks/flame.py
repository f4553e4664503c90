"""Where does a gRPC request of a model spend the interpreter's time? A flame graph, Python and C++ together.

64 streams of one row each over the native transport; py-spy samples who holds the interpreter. The I/O thread, which does
not know Python, is in `profile --protocol grpc`.

    python -m benchmarks.flame
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from benchmarks import bodies
from benchmarks.generator import Load, write_bodies
from benchmarks.measure import measure, show
from benchmarks.peers import GRPC_INFER, MODEL, NUM_ROWS, SEED
from benchmarks.record import RESULTS
from benchmarks.server import HeadroomServer
from benchmarks.subject import ROOT
from benchmarks.transport import BUDGET_MS

SECONDS = 12.0
FILE = RESULTS / "transport_flame.svg"
TITLE = "ModelInfer, one row of 300 trees a request, 64 streams: who holds the interpreter"


def record(pid: int, seconds: float, file: Path) -> None:
    """py-spy's own picture."""
    command = [
        str(Path(sys.executable).parent / "py-spy"), "record", "-p", str(pid), "-d", f"{seconds:g}", "-r", "200", "--native",
        "--gil", "-f", "flamegraph", "-o", str(file),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    text = file.read_text().replace(" ".join(command), TITLE)
    file.write_text(text.replace(f"{ROOT}/", ""))


def main() -> None:
    """Writes results/transport_flame.svg."""
    with tempfile.TemporaryDirectory(prefix="headroom-flame-") as name:
        folder = Path(name)
        rows = write_bodies(folder / "infer.bin", bodies.infer_grpc(bodies.card_rows(SEED, NUM_ROWS), MODEL))
        with HeadroomServer(folder / "headroom", models={MODEL: {"budget_ms": BUDGET_MS}}) as server:
            load = Load(server.grpc(GRPC_INFER), rows, 8, SECONDS, warmup_s=1.0, protocol="grpc", streams=8)
            (process,) = server.processes()
            recording = threading.Timer(2.0, record, (process.pid, SECONDS - 4, FILE))
            recording.start()
            row = measure(server, load)
            recording.join()
            row["name"] = "while it was sampled"
            show(row)
    print(f"written to {FILE}")


if __name__ == "__main__":
    main()
