"""Keeps the node's sockets while replicas come and go: `python -m serve.ingress.socket_holder RUN_DIR OWNER_PID`.

In: requests over the run folder's Unix socket. Out: replies, and with them the sockets (SCM_RIGHTS); the connection a
client asked over is its lease. Started by `serve.ingress.sockets.acquire` in 70 ms; with few imports it takes 10 MB.

Life. One holder a run folder: it keeps a lock on `sockets.lock`, which the kernel lifts however it dies, so a socket
file without a lock is stale. It ends when the owner does, some seconds after the last lease closed, or on SIGTERM.

Which sockets it keeps. Those some lease uses and, as long as nobody leases anything, all of them: connections wait in
the backlog while the only replica restarts. When replicas move to other ports, the former close with the last replica
that leased them. A port cannot change between listening and reserved while a replica still uses it the other way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import socket
import sys
import time
from typing import NoReturn

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

_LOCK_NAME = "sockets.lock"
_FIRST_REQUEST_WAIT_S = 10.0
_OWNER_LOOK_S = 0.2


class Owner:
    """The process whose end ends the holder, seen by its pidfd or, where there is none, by looking 5 times a second."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when no such process runs."""
        if not is_running(pid):
            raise ProcessLookupError(f"owner pid is {pid}; allowed: the pid of a running process")
        self.pid = pid
        self.pidfd = _open_pidfd(pid)

    @property
    def look_s(self) -> float | None:
        """How long the holder may sleep without missing the owner's end; None: the pidfd wakes it."""
        return _OWNER_LOOK_S if self.pidfd is None else None

    def has_ended(self, ready: set[object]) -> bool:
        """Whether the owner is gone; `ready` is what the selector found readable."""
        return self.pidfd in ready if self.pidfd is not None else not is_running(self.pid)


class Holder:
    """Owns the sockets and the leases. Single-threaded; `run` blocks until there is a reason to end."""

    def __init__(self, listener: socket.socket, owner: Owner) -> None:
        self._listener = listener
        self._owner = owner
        self._held: dict[Address, socket.socket] = {}
        self._leases: dict[socket.socket, frozenset[Address]] = {}
        self._linger_s = _FIRST_REQUEST_WAIT_S
        self._idle_since_s = time.monotonic()
        self._selector = selectors.DefaultSelector()

    def run(self) -> str:
        """Serves requests; returns why it ended."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        if self._owner.pidfd is not None:
            self._selector.register(self._owner.pidfd, selectors.EVENT_READ)
        while True:
            ready: set[object] = {key.fileobj for key, _ in self._selector.select(self._sleep_s())}
            if self._owner.has_ended(ready):
                return f"the owner, pid {self._owner.pid}, ended"
            for source in ready:
                self._serve(source)
            if not self._leases and self._linger_left_s() <= 0:
                return f"nobody held a lease for {self._linger_s:g} s"

    def _linger_left_s(self) -> float:
        return self._idle_since_s + self._linger_s - time.monotonic()

    def _sleep_s(self) -> float | None:
        limits = [self._owner.look_s, None if self._leases else max(0.0, self._linger_left_s())]
        return min((limit for limit in limits if limit is not None), default=None)

    def _serve(self, source: object) -> None:
        if source is self._listener:
            self._accept()
        elif isinstance(source, socket.socket):
            self._read(source)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if not has_our_user(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        try:
            message = connection.recv(MAX_MESSAGE_BYTES)
            if message:
                self._answer(connection, Request.decode(message))
                return
        except Exception as error:  # one client's mistake must not end what all of them need
            log(f"dropped a client: {error!r}")
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        if self._leases.pop(connection, None) is None:
            return
        self._idle_since_s = time.monotonic()
        if self._leases:
            self._close_unused(frozenset())

    def _answer(self, connection: socket.socket, request: Request) -> None:
        reply = Reply(os.getpid(), self._owner.pid)
        if request.owner_pid == self._owner.pid:
            self._linger_s = request.linger_s
            reply = self._grant(connection, request, reply)
        leased = [self._held[address].fileno() for address in request.addresses if connection in self._leases]
        socket.send_fds(connection, [reply.encode()], leased)

    def _grant(self, connection: socket.socket, request: Request, granted: Reply) -> Reply:
        """All of the addresses or none. What nobody uses closes first: it may be in the way of what is asked."""
        wanted = frozenset(request.addresses)
        self._close_unused(wanted)
        opened: dict[Address, socket.socket] = {}
        for address in wanted - self._held.keys():
            try:
                opened[address] = open_socket(address, request.backlog)
            except OSError as error:
                _close_all(opened)
                return granted._replace(errno=error.errno or errno.EINVAL, failed=address)
        self._held |= opened
        for address in wanted:
            if address.is_listening:
                self._held[address].listen(request.backlog)
        self._leases[connection] = wanted
        return granted

    def _close_unused(self, wanted: frozenset[Address]) -> None:
        used = wanted.union(*self._leases.values())
        _close_all({address: self._held.pop(address) for address in self._held.keys() - used})


def open_socket(address: Address, backlog: int) -> socket.socket:
    """Binds exclusively, non-blocking; raises OSError (EADDRINUSE, EACCES, EADDRNOTAVAIL)."""
    return _listen(address, backlog) if address.is_listening else _reserve(address)


def log(text: str) -> None:
    """One line to the log file (standard error), with the wall-clock time."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), f"socket holder {os.getpid()}: {text}", file=sys.stderr, flush=True)


def main(run_dir: str, owner_pid: int) -> None:
    """Starts the holder in the background; ends once it can be asked, or at once when another one has the lock.

    Raises OSError when the run folder is not ours alone or the owner does not run.
    """
    folder = open_run_dir(run_dir)
    lock = os.open(_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    owner = Owner(owner_pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        _bind_replacing_stale(listener, folder)
        # The launcher leaves at once: the holder is nobody's child, so it outlives the replica that started it.
        if os.fork():
            os._exit(0)
        _live(listener, owner, folder)


def _live(listener: socket.socket, owner: Owner, folder: int) -> None:
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_on_signal)
    _leave_ray_oom_score()
    log(f"started for pid {owner.pid}")
    try:
        log(f"ends: {Holder(listener, owner).run()}")
    finally:
        os.unlink(socket_path(folder))


def _end_on_signal(number: int, _frame: object) -> NoReturn:
    log(f"ends: {signal.Signals(number).name}")
    sys.exit(0)


def _leave_ray_oom_score() -> None:
    """Ray marks its workers, and so what they start, as the kernel's first victims; the holder serves all of them."""
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as score:
            if int(score.read()) > 0:
                score.write(b"0")
    except OSError as error:
        log(f"oom_score_adj stays: {error}")


def _bind_replacing_stale(listener: socket.socket, folder: int) -> None:
    """Only the keeper of the lock comes here, so a file that is there belongs to a dead holder."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket_path(folder))
    listener.bind(socket_path(folder))
    listener.listen(128)


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None


def _new_socket(address: Address) -> socket.socket:
    """SO_REUSEADDR lets a restart pass connections in TIME_WAIT; it does not let two sockets listen."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    created = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return created


def _listen(address: Address, backlog: int) -> socket.socket:
    listening = _new_socket(address)
    try:
        listening.bind((address.host, address.port))
        listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening


def _reserve(address: Address) -> socket.socket:
    """Keeps the port for SO_REUSEPORT listeners of this user, of which there is none yet.

    SO_REUSEPORT alone would join a forgotten server's listeners, so a listening socket first proves that nobody has
    the port, and the reservation is made beside it. Without SO_REUSEADDR afterwards nobody else can do the same.
    """
    reserved = _new_socket(address)
    try:
        with _listen(address, 1) as proof:
            proof.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((address.host, address.port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        reserved.close()
        raise
    return reserved


def _close_all(sockets: dict[Address, socket.socket]) -> None:
    for held in sockets.values():
        held.close()


if __name__ == "__main__":
    try:
        _, folder_argument, owner_argument = sys.argv
        main(folder_argument, int(owner_argument))
    except (OSError, ValueError) as problem:
        log(str(problem))
        sys.exit(1)
