"""A gRPC listener of ours that gives every message back, native or grpc.aio: what a front end costs, without a model.

python -m benchmarks.frontend native|aio PORT [--certificates FOLDER] [--busy-switch-ms MS]
"""

from __future__ import annotations

import argparse
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


def never_rest(ended: threading.Event) -> None:
    """Holds the interpreter as long as it is let, as a batch's Python does."""
    numbers = list(range(1000))
    while not ended.is_set():
        sum([number * number for number in numbers])


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("native", "aio"))
    parser.add_argument("port", type=int)
    parser.add_argument("--certificates", type=Path, help="folder with server.pem and server.key")
    parser.add_argument("--busy-switch-ms", type=float, help="a thread beside it never rests; the switch interval")
    options = parser.parse_args()
    tls, keys = None, options.certificates
    if keys is not None:
        tls = GrpcTls(certificate=str(keys / "server.pem"), key=str(keys / "server.key"))
    listen = Listen(grpc_port=options.port, grpc_transport=options.kind, grpc_tls=tls)
    folder = Path(tempfile.mkdtemp(prefix="headroom-frontend-"))
    access_log = AccessLog(folder / "access.log", max_lines_per_s=0)
    access_log.start()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.kind == "native":
        listening.bind(("127.0.0.1", options.port))
        listening.listen(512)
        listening.setblocking(False)
    methods = GrpcMethods(batched={}, direct={f"/{METHOD}": lambda payload, _: payload, **Health(()).methods()})
    ledger = Ledger("grpc", Metrics.open(folder / "metrics", version=VERSION), access_log)
    listener = grpc_listener(listen, listening, methods, Limits(max_body_bytes=16 << 20), ledger)
    listener.start()
    ended = threading.Event()
    if options.busy_switch_ms is not None:
        sys.setswitchinterval(options.busy_switch_ms / 1e3)
        threading.Thread(target=never_rest, args=(ended,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    listener.drain(time.monotonic_ns() + 1_000_000_000)


if __name__ == "__main__":
    main()
