"""What the socket holder and its clients share: the messages, the folder they meet in and whom they talk to.

In and out: one message of a SOCK_SEQPACKET connection each way, a `Request` and its `Reply`. Used by
`serve.ingress.sockets` in the replica and by `serve.ingress.socket_holder`. Standard library only: the holder is small.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from typing import NamedTuple

MAX_MESSAGE_BYTES = 65536
_SOCKET_NAME = "sockets.sock"


class Address(NamedTuple):
    """What one socket is bound to. Not listening: the port is kept for sockets of this user that set SO_REUSEPORT."""

    host: str
    port: int
    is_listening: bool


class Request(NamedTuple):
    """Asks for a lease of `addresses`; `linger_s` and `backlog` apply from now on, also to what is held already."""

    owner_pid: int
    linger_s: float
    backlog: int
    addresses: tuple[Address, ...]

    def encode(self) -> bytes:
        """One message of the Unix socket."""
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, message: bytes) -> Request:
        """Undoes `encode`; raises ValueError or TypeError on anything else."""
        owner_pid, linger_s, backlog, addresses = json.loads(message)
        return cls(int(owner_pid), float(linger_s), int(backlog), tuple(Address(*address) for address in addresses))


class Reply(NamedTuple):
    """Granted when `owner_pid` is the asked one and `errno` is 0; else nothing is leased and `failed` did not bind."""

    holder_pid: int
    owner_pid: int
    errno: int = 0
    failed: Address | None = None

    def encode(self) -> bytes:
        """One message of the Unix socket."""
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, message: bytes) -> Reply:
        """Undoes `encode`."""
        holder_pid, owner_pid, error_number, failed = json.loads(message)
        return cls(holder_pid, owner_pid, error_number, Address(*failed) if failed else None)


def has_our_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of the Unix socket runs as our user, as the kernel says."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, peer_uid, _ = struct.unpack("3i", credentials)
    return bool(peer_uid == os.geteuid())


def open_run_dir(run_dir: str) -> int:
    """The folder's descriptor. Raises OSError when it is missing and PermissionError when others could enter it."""
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(folder)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == os.geteuid() and mode == 0o700:
        return folder
    os.close(folder)
    raise PermissionError(
        f"run folder {run_dir} has mode {mode:04o} and owner uid {status.st_uid}; "
        f"allowed: mode 0700, owner uid {os.geteuid()}"
    )


def socket_path(folder: int) -> str:
    """The Unix socket's address, by way of the open folder: a plain path would be limited to 107 bytes."""
    return f"/proc/self/fd/{folder}/{_SOCKET_NAME}"


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as process:
            return process.read().rpartition(b") ")[2][:1] not in {b"Z", b"X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
