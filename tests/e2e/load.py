"""The project's load generator, driven by tests."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

from protos.headroom.fraud.v1 import fraud_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / ".build" / "headroom-load"
MARKER = "MARKERMARKER"


def transactions(num: int, seed: int = 1) -> list[dict[str, Any]]:
    """Seeded transactions whose ids the generator makes unique."""
    rng = random.Random(seed)
    return [
        {
            "transaction_id": MARKER,
            "customer_id": f"c{rng.randrange(500)}",
            "terminal_id": f"m{rng.randrange(1000)}",
            "amount": round(rng.lognormvariate(3.5, 0.8), 2),
            "timestamp": 1_533_700_000 + 7 * i,
        }
        for i in range(num)
    ]


class Load:
    """One run of the generator in the background."""

    def __init__(self, folder: Path, url: str, protocol: str, bodies: list[bytes], **options: Any) -> None:
        bodies_path, self._out = folder / f"{protocol}.bodies", folder / f"{protocol}.json"
        bodies_path.write_bytes(b"".join(struct.pack("<I", len(body)) + body for body in bodies))
        command = [str(GENERATOR), "--url", url, "--protocol", protocol, "--bodies", str(bodies_path)]
        command += ["--unique-marker", MARKER, "--json", str(self._out), "--warmup-s", "0"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def result(self) -> dict[str, Any]:
        """Waits for the end; the generator's report."""
        _, errors = self._process.communicate(timeout=300)
        assert self._out.exists(), errors.decode()
        report: dict[str, Any] = json.loads(self._out.read_text())
        return report

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


def http_bodies(num: int = 2000) -> list[bytes]:
    return [json.dumps(transaction).encode() for transaction in transactions(num)]


def grpc_bodies(num: int = 2000) -> list[bytes]:
    return [
        pb.ScoreRequest(transaction=pb.Transaction(**transaction)).SerializeToString()
        for transaction in transactions(num, seed=2)
    ]
