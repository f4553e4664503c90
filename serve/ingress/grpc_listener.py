"""Which gRPC listener serves: the native transport where it has been built, grpc.aio where it has not."""

from __future__ import annotations

import logging
import os
import socket

from kernels.transport import why_unavailable
from serve.ingress.grpc_aio import AioGrpcListener
from serve.ingress.grpc_methods import GrpcMethods
from serve.ingress.grpc_native import NativeGrpcListener
from serve.ingress.ledger import Ledger
from serve.settings import Limits, Listen, SettingsError

log = logging.getLogger(__name__)

GrpcListener = NativeGrpcListener | AioGrpcListener
_MAX_THREADS = 4


def is_native(listen: Listen) -> bool:
    """Whether the native transport serves. Raises SettingsError where it is asked for and not there."""
    if listen.grpc_transport == "aio":
        return False
    reason = why_unavailable()
    if reason is not None and listen.grpc_transport == "native":
        raise SettingsError(f"listen.grpc_transport is native, but {reason}")
    return reason is None


def grpc_listener(
    listen: Listen, listening: socket.socket, methods: GrpcMethods, limits: Limits, ledger: Ledger
) -> GrpcListener:
    """Makes it; says in the log which one. `listening` is the port's socket, which only the native transport adopts."""
    if is_native(listen):
        log.info("gRPC is served by the native transport")
        num_threads = listen.grpc_threads or max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))
        try:
            return NativeGrpcListener(listening, methods, limits, ledger, num_threads=num_threads, tls=listen.grpc_tls)
        except RuntimeError as error:
            raise SettingsError(f"listen.grpc_tls: {error}") from None
    log.warning(
        "gRPC is served by grpc.aio, several times slower: %s", why_unavailable() or "listen.grpc_transport: aio"
    )
    return AioGrpcListener(f"{listen.host}:{listen.grpc_port}", methods, limits, ledger, tls=listen.grpc_tls)
