"""A gRPC listener of ours that gives every message back, native or grpc.aio: what a front end costs, without a model.

python -m benchmarks.frontend native|aio PORT [FOLDER with server.pem and server.key]
"""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from serve.ingress.grpc_health import Health
from serve.ingress.grpc_listener import grpc_listener
from serve.ingress.grpc_methods import GrpcMethods
from serve.ingress.ledger import Ledger
from serve.observability.logs import AccessLog
from serve.observability.metrics import Metrics
from serve.settings import GrpcTls, Limits, Listen
from serve.version import VERSION

METHOD = "headroom.benchmark.Echo/Unary"


def main() -> None:
    """Serves until it is interrupted."""
    kind, port, *tls_folder = sys.argv[1:]
    tls = None
    if tls_folder:
        tls = GrpcTls(certificate=f"{tls_folder[0]}/server.pem", key=f"{tls_folder[0]}/server.key")
    listen = Listen(grpc_port=int(port), grpc_transport=kind, grpc_tls=tls)  # type: ignore[arg-type]
    folder = Path(tempfile.mkdtemp(prefix="headroom-frontend-"))
    access_log = AccessLog(folder / "access.log", max_lines_per_s=0)
    access_log.start()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == "native":
        listening.bind(("127.0.0.1", int(port)))
        listening.listen(512)
        listening.setblocking(False)
    methods = GrpcMethods(batched={}, direct={f"/{METHOD}": lambda payload, _: payload, **Health(()).methods()})
    ledger = Ledger("grpc", Metrics.open(folder / "metrics", version=VERSION), access_log)
    listener = grpc_listener(listen, listening, methods, Limits(max_body_bytes=16 << 20), ledger)
    listener.start()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    listener.drain(time.monotonic_ns() + 1_000_000_000)


if __name__ == "__main__":
    main()
