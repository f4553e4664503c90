"""The listening sockets of an ingress replica, leased from the node's socket holder.

In: the endpoints of the configuration and the process whose end frees the ports. Out: a `SocketLease` with the bound
sockets. Called by an ingress replica before it starts its listeners; starts the holder when none runs.

SO_REUSEPORT would reset connections that wait in a closing listener's queue and let a forgotten server take traffic, so
one small process binds exclusively and the replicas share its sockets, and with them the queue of accepted connections.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.errors import AddressInUse, HeadroomError, InvalidInput, NotReady
from serve.ingress.port_occupant import describe_occupant, describe_process
from serve.ingress.socket_protocol import (
    MAX_MESSAGE_BYTES,
    Address,
    Reply,
    Request,
    has_our_user,
    is_running,
    open_run_dir,
    socket_path,
)

_PROJECT_ROOT = Path(__file__).resolve().parents[2]
_LOG_NAME = "sockets.log"
_MAX_ENDPOINTS = 64


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one listener wants: `name` is `http`, `grpc` or `metrics`; `host` an address or `localhost`.

    Not listening: the port is only kept, for a listener that cannot adopt a socket and binds beside it with
    SO_REUSEPORT. Nobody answers such a port while no replica lives; connections to it are refused.
    """

    name: str
    host: str
    port: int
    is_listening: bool = True


class SocketLease:
    """The sockets by endpoint name, non-blocking and closed on exec, and the connection that keeps them leased.

    Other replicas share the sockets: closing one stops accepting here only, `shutdown` would stop it for all. The lease
    ends with `close` or with the process, however it dies.
    """

    def __init__(self, sockets: Mapping[str, socket.socket], connection: socket.socket, holder_pid: int) -> None:
        self.sockets = sockets
        self.holder_pid = holder_pid
        self._connection = connection

    @property
    def is_held(self) -> bool:
        """Whether the holder still keeps the ports; once False, a replica that starts may find them taken by us."""
        if self._connection.fileno() < 0:
            return False
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Closes the sockets, then ends the lease; may be called twice."""
        for leased in self.sockets.values():
            leased.close()
        self._connection.close()


def acquire(
    endpoints: Sequence[Endpoint],
    *,
    run_dir: Path,
    owner_pid: int,
    backlog: int = 4096,
    linger_s: float = 15.0,
    timeout_s: float = 10.0,
) -> SocketLease:
    """Leases all of the endpoints or none; blocks up to `timeout_s`.

    The ports are freed when the process `owner_pid` ends, or `linger_s` after the node's last lease closed.
    Raises InvalidInput (host, port, run folder), AddressInUse (another process has a port, or a server with another
    owner that still runs uses the run folder) and NotReady (the holder does not start or answer).
    """
    request = Request(owner_pid, linger_s, backlog, _addresses(endpoints))
    deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    with _open_folder(run_dir) as folder:
        while (left_s := (deadline_ns - time.monotonic_ns()) / 1e9) > 0:
            with contextlib.suppress(TimeoutError):
                connection = _connect(folder, left_s)
                if connection is None:
                    _start_holder(run_dir, owner_pid, left_s)
                elif lease := _ask(connection, request, [endpoint.name for endpoint in endpoints]):
                    return lease
    raise NotReady(f"the socket holder of {run_dir} did not answer in {timeout_s:g} s; see {run_dir}/{_LOG_NAME}")


def _addresses(endpoints: Sequence[Endpoint]) -> tuple[Address, ...]:
    addresses = tuple(_address(endpoint) for endpoint in endpoints)
    if len({(address.host, address.port) for address in addresses}) < len(addresses):
        asked = ", ".join(f"{endpoint.name} {endpoint.host}:{endpoint.port}" for endpoint in endpoints)
        raise InvalidInput(f"listen has {asked}; allowed: each address once", field="listen")
    return addresses


def _address(endpoint: Endpoint) -> Address:
    if not 1 <= endpoint.port <= 65535:
        field = f"listen.{endpoint.name}.port"
        raise InvalidInput(f"{field} is {endpoint.port}; allowed 1 to 65535", field=field)
    host = "127.0.0.1" if endpoint.host == "localhost" else endpoint.host
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError as error:
        field = f"listen.{endpoint.name}.host"
        allowed = "allowed: an IPv4 or IPv6 address, or localhost"
        raise InvalidInput(f"{field} is {endpoint.host!r}; {allowed}", field=field) from error
    return Address(host, endpoint.port, endpoint.is_listening)


@contextlib.contextmanager
def _open_folder(run_dir: Path) -> Iterator[int]:
    try:
        folder = open_run_dir(os.fspath(run_dir))
    except OSError as error:
        raise InvalidInput(str(error), field="run_dir") from error
    try:
        yield folder
    finally:
        os.close(folder)


def _connect(folder: int, timeout_s: float) -> socket.socket | None:
    """None when no holder listens: it never ran, or has ended and perhaps left its file."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout_s)
    try:
        connection.connect(socket_path(folder))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    if not has_our_user(connection):
        connection.close()
        raise NotReady("the socket holder runs as another user; allowed: our own")
    return connection


def _start_holder(run_dir: Path, owner_pid: int, timeout_s: float) -> None:
    """Returns when the holder can be asked, or another is about to be. Its lock lets one of several starters win.

    The launcher puts the holder in a session of its own and ends, so neither Ctrl-C nor Ray, which kills a dead
    worker's children, reaches it. `-S -E`: it needs no site-packages, and starts in half the time without.
    """
    command = [sys.executable, "-S", "-E", "-m", "serve.ingress.socket_holder", str(run_dir.resolve()), str(owner_pid)]
    log_path = run_dir / _LOG_NAME
    with log_path.open("ab") as log:
        try:
            launcher = subprocess.run(
                command,
                cwd=_PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
    if launcher.returncode != 0:
        reason = log_path.read_text(errors="replace").strip().rpartition("\n")[2]
        raise NotReady(f"the socket holder did not start: {reason}")


def _ask(connection: socket.socket, request: Request, names: Sequence[str]) -> SocketLease | None:
    """None when the holder ended meanwhile, so that another has to be asked."""
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        try:
            connection.sendall(request.encode())
            reply, sockets = _receive(connection)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            return None
        if reply.owner_pid != request.owner_pid:
            _wait_for_end(connection, reply)
            return None
        if reply.failed is not None:
            raise _bind_error(reply.errno, reply.failed)
        if len(sockets) != len(names):
            raise NotReady(f"{len(sockets)} of {len(names)} sockets arrived; raise the limit of open files (ulimit -n)")
        undo.pop_all()
        connection.setblocking(False)
        return SocketLease(dict(zip(names, sockets, strict=True)), connection, reply.holder_pid)


def _receive(connection: socket.socket) -> tuple[Reply, list[socket.socket]]:
    """The reply and its sockets; raises EOFError when the holder has gone. (`socket.recv_fds` ignores its flags.)"""
    descriptors = array("i")
    room = socket.CMSG_LEN(_MAX_ENDPOINTS * descriptors.itemsize)
    message, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, content in ancillary:
        descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for received in sockets:
        received.setblocking(False)
    if not message:
        raise EOFError
    return Reply.decode(message), sockets


def _wait_for_end(connection: socket.socket, reply: Reply) -> None:
    """Until a holder whose owner has ended is gone too; AddressInUse when that owner still runs."""
    if is_running(reply.owner_pid):
        owner = describe_process(reply.owner_pid)
        raise AddressInUse(f"the run folder's ports are held for {owner}; stop it, or use another run folder and ports")
    with contextlib.suppress(ConnectionResetError):
        connection.recv(1)


def _bind_error(error_number: int, address: Address) -> HeadroomError:
    if error_number == errno.EADDRINUSE:
        occupant = describe_occupant(address.host, address.port)
        return AddressInUse(f"port {address.port} on {address.host} is held by {occupant}; stop it or set another port")
    reason = os.strerror(error_number)
    return InvalidInput(f"cannot listen on {address.host} port {address.port}: {reason}", field="listen")
