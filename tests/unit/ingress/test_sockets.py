"""The socket holder with real processes and sockets: who serves, who waits, and when the ports are free again."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from serve.errors import AddressInUse, InvalidInput, NotReady
from serve.ingress import socket_protocol, sockets
from serve.ingress.socket_holder import Owner
from serve.ingress.sockets import Endpoint, SocketLease, acquire

DEADLINE_S = 20.0
ROOT = Path(__file__).resolve().parents[3]
REPLICA = """
import select, socket, sys
from pathlib import Path
from serve.ingress.sockets import Endpoint, acquire
run_dir, owner_pid, port = sys.argv[1:]
lease = acquire([Endpoint("http", "127.0.0.1", int(port))], run_dir=Path(run_dir), owner_pid=int(owner_pid))
print(lease.holder_pid, flush=True)
accepted = []
for name in sys.stdin:
    select.select([lease.sockets["http"]], [], [])
    accepted.append(lease.sockets["http"].accept()[0])
    accepted[-1].sendall(name.encode())
"""


class Replica:
    """A process that leases one port and, when told, accepts one connection, answers its name and keeps it open."""

    def __init__(self, name: str, run_dir: Path, owner_pid: int, port: int) -> None:
        command = [sys.executable, "-c", REPLICA, str(run_dir), str(owner_pid), str(port)]
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True)

    def holder_pid(self) -> int:
        """Blocks until the lease is there."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def accept_one(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(self.name + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Kills it and whatever it started in its process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


class Node:
    """A run folder, an owner process and everything started for a test; ends it all."""

    def __init__(self, run_dir: Path, undo: ExitStack) -> None:
        run_dir.mkdir(mode=0o700)
        self.run_dir = run_dir
        self.undo = undo
        self.owner = self.start_owner()

    def start_owner(self) -> subprocess.Popen[bytes]:
        owner = subprocess.Popen(["sleep", "600"])
        self.undo.callback(owner.wait)
        self.undo.callback(owner.kill)
        return owner

    def replica(self, name: str, port: int) -> Replica:
        replica = Replica(name, self.run_dir, self.owner.pid, port)
        self.undo.callback(replica.kill)
        return replica

    def lease(self, *endpoints: Endpoint, owner_pid: int | None = None, **options: float) -> SocketLease:
        owner_pid = owner_pid or self.owner.pid
        lease = acquire(endpoints, run_dir=self.run_dir, owner_pid=owner_pid, **options)  # type: ignore[arg-type]
        self.undo.callback(lease.close)
        return lease

    def connect(self, port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.undo.callback(client.close)
        return client


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with ExitStack() as undo:
        yield Node(tmp_path / "run", undo)
    eventually(lambda: not (tmp_path / "run/sockets.sock").exists())


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http(port: int, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint("http", host, port)


def grpc(port: int) -> Endpoint:
    return Endpoint("grpc", "127.0.0.1", port, is_listening=False)


def eventually(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.005)


def wait_for_end_of(pid: int) -> None:
    """Blocks until a process that is not our child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], DEADLINE_S)[0], f"pid {pid} has not ended"
    finally:
        os.close(pidfd)


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def reuseport_listener(port: int) -> socket.socket:
    """What grpc.aio binds."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_two_replicas_take_connections_from_one_queue(node: Node, port: int) -> None:
    first, second = node.replica("first", port), node.replica("second", port)
    assert first.holder_pid() == second.holder_pid()
    clients = [node.connect(port), node.connect(port)]
    second.accept_one()
    assert clients[0].recv(64) == b"second\n"
    first.accept_one()
    assert clients[1].recv(64) == b"first\n"


def test_a_killed_replica_loses_only_what_it_had_accepted(node: Node, port: int) -> None:
    starter, other = node.replica("starter", port), None
    holder_pid = starter.holder_pid()
    other = node.replica("other", port)
    assert other.holder_pid() == holder_pid
    accepted = node.connect(port)
    starter.accept_one()
    assert accepted.recv(64) == b"starter\n"
    waiting = node.connect(port)
    starter.kill()
    assert accepted.recv(64) == b""
    other.accept_one()
    assert waiting.recv(64) == b"other\n"


def test_connections_wait_while_no_replica_lives_and_the_next_one_serves_them(node: Node, port: int) -> None:
    first = node.replica("first", port)
    holder_pid = first.holder_pid()
    first.kill()
    waiting = node.connect(port)
    second = node.replica("second", port)
    assert second.holder_pid() == holder_pid
    second.accept_one()
    assert waiting.recv(64) == b"second\n"


def test_replicas_that_start_together_start_one_holder(node: Node, port: int) -> None:
    replicas = [node.replica(str(number), port) for number in range(4)]
    assert len({replica.holder_pid() for replica in replicas}) == 1


def test_threads_that_start_together_start_one_holder(node: Node, port: int) -> None:
    leases: list[SocketLease] = []
    starters = [threading.Thread(target=lambda: leases.append(node.lease(http(port)))) for _ in range(6)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(leases) == 6
    assert len({lease.holder_pid for lease in leases}) == 1


def test_sockets_arrive_non_blocking_and_closed_on_exec(node: Node, port: int) -> None:
    leased = node.lease(http(port)).sockets["http"]
    assert leased.getsockname() == ("127.0.0.1", port)
    assert leased.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert leased.gettimeout() == 0
    assert not os.get_blocking(leased.fileno())
    assert not leased.get_inheritable()


@pytest.mark.parametrize(("host", "bound"), [("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1")])
def test_hosts_are_addresses_of_both_families_or_localhost(node: Node, port: int, host: str, bound: str) -> None:
    assert node.lease(http(port, host)).sockets["http"].getsockname()[:2] == (bound, port)


def test_the_holder_ends_with_its_owner_and_frees_the_ports(node: Node, port: int) -> None:
    lease = node.lease(http(port), grpc(free_port()))
    assert lease.is_held
    node.owner.kill()
    wait_for_end_of(lease.holder_pid)
    assert not lease.is_held
    lease.close()
    assert not lease.is_held
    assert not (node.run_dir / "sockets.sock").exists()
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


def test_the_holder_ends_when_nobody_has_leased_for_linger_s(node: Node, port: int) -> None:
    lease = node.lease(http(port), linger_s=0.2)
    closed_at = time.monotonic()
    lease.close()
    wait_for_end_of(lease.holder_pid)
    assert time.monotonic() - closed_at >= 0.2
    assert not (node.run_dir / "sockets.sock").exists()
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


def test_an_owner_without_a_pidfd_is_looked_at(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_implemented(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", not_implemented)
    owner = Owner(node.owner.pid)
    assert (owner.look_s, owner.has_ended(set())) == (0.2, False)
    node.owner.kill()
    eventually(lambda: owner.has_ended(set()))


def test_an_owner_that_does_not_run_is_refused(node: Node, port: int) -> None:
    node.owner.kill()
    node.owner.wait()
    with pytest.raises(NotReady, match=r"did not start: .*owner pid is \d+; allowed: the pid of a running process"):
        node.lease(http(port))


def test_ctrl_c_does_not_end_the_holder_and_sigterm_does(node: Node, port: int) -> None:
    holder_pid = node.lease(http(port)).holder_pid
    assert os.getsid(holder_pid) != os.getsid(0)
    os.kill(holder_pid, signal.SIGINT)
    assert node.lease(http(port)).holder_pid == holder_pid
    os.kill(holder_pid, signal.SIGTERM)
    wait_for_end_of(holder_pid)
    assert not (node.run_dir / "sockets.sock").exists()
    assert "SIGTERM" in (node.run_dir / "sockets.log").read_text()


def test_the_socket_file_of_a_killed_holder_is_replaced(node: Node, port: int) -> None:
    lease = node.lease(http(port))
    os.kill(lease.holder_pid, signal.SIGKILL)
    wait_for_end_of(lease.holder_pid)
    assert (node.run_dir / "sockets.sock").exists()
    assert not lease.is_held
    lease.close()
    again = node.lease(http(port))
    assert again.holder_pid != lease.holder_pid
    assert again.is_held


def test_a_port_in_use_is_refused_with_the_pid_and_nothing_is_kept(node: Node, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(AddressInUse) as refusal:
            node.lease(http(port), Endpoint("metrics", *taken.getsockname()))
        assert f"port {taken.getsockname()[1]} on 127.0.0.1 is held by pid {os.getpid()} (" in refusal.value.message
        assert refuses(port)


def test_a_second_server_does_not_get_the_ports_of_the_first(node: Node, port: int, tmp_path: Path) -> None:
    grpc_port = free_port()
    lease = node.lease(http(port), grpc(grpc_port))
    with ExitStack() as undo:
        other = Node(tmp_path / "other", undo)
        with pytest.raises(AddressInUse, match=f"port {port} "):
            other.lease(http(port))
        with pytest.raises(AddressInUse, match=f"port {grpc_port} "):
            other.lease(grpc(grpc_port))
    assert lease.is_held


def test_a_reserved_port_takes_listeners_beside_it_and_no_others(node: Node, port: int) -> None:
    node.lease(grpc(port))
    with reuseport_listener(port) as listener:
        node.connect(port)
        listener.accept()[0].close()
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port)).close()


def test_a_forgotten_listener_with_so_reuseport_is_found(node: Node, port: int) -> None:
    with reuseport_listener(port), pytest.raises(AddressInUse, match=f"pid {os.getpid()} "):
        node.lease(grpc(port))


@pytest.mark.parametrize("endpoint", [http, grpc])
def test_connections_in_time_wait_do_not_block_a_restart(
    node: Node, port: int, endpoint: Callable[[int], Endpoint]
) -> None:
    with reuseport_listener(port) as listener:
        client = node.connect(port)
        listener.accept()[0].close()
        assert client.recv(1) == b""
        client.close()
    assert node.lease(endpoint(port)).is_held


def test_moved_ports_are_added_and_the_former_close_with_their_last_lease(node: Node, port: int) -> None:
    former = node.lease(http(port))
    moved_port = free_port()
    moved = node.lease(http(moved_port))
    assert moved.holder_pid == former.holder_pid
    assert not refuses(port)
    former.close()
    eventually(lambda: refuses(port))
    assert not refuses(moved_port)


def test_a_port_nobody_leases_can_change_between_reserved_and_listening(node: Node, port: int) -> None:
    node.lease(http(port)).close()
    reserved = node.lease(grpc(port))
    assert reserved.sockets["grpc"].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
    reserved.close()
    assert node.lease(http(port)).holder_pid == reserved.holder_pid


def test_another_owner_that_runs_is_named(node: Node, port: int) -> None:
    node.lease(http(port))
    with pytest.raises(AddressInUse, match=rf"held for pid {node.owner.pid} \(sleep 600\)"):
        node.lease(http(port), owner_pid=node.start_owner().pid)


def test_a_holder_whose_owner_ended_is_waited_for(node: Node, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    former = node.lease(http(port))
    for leased in former.sockets.values():
        leased.close()

    def ends_when_looked_at(pid: int) -> bool:
        os.kill(pid, signal.SIGKILL)
        return False

    monkeypatch.setattr(sockets, "is_running", ends_when_looked_at)
    successor = node.start_owner()
    assert node.lease(http(port), owner_pid=successor.pid).holder_pid != former.holder_pid


def test_a_holder_that_does_not_answer_is_an_error_after_timeout_s(node: Node, port: int) -> None:
    holder_pid = node.lease(http(port)).holder_pid
    os.kill(holder_pid, signal.SIGSTOP)
    try:
        with pytest.raises(NotReady, match=r"did not answer in 0\.1 s"):
            node.lease(http(port), timeout_s=0.1)
    finally:
        os.kill(holder_pid, signal.SIGCONT)


def test_a_client_that_talks_nonsense_is_dropped_and_the_others_stay(node: Node, port: int) -> None:
    lease = node.lease(http(port))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        folder = socket_protocol.open_run_dir(str(node.run_dir))
        client.connect(socket_protocol.socket_path(folder))
        os.close(folder)
        client.settimeout(DEADLINE_S)
        client.sendall(f'[{node.owner.pid}, 1, 1, [["127.0.0.1", 99999, true]]]'.encode())
        assert client.recv(64) == b""
    assert lease.is_held


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o500])
def test_a_run_folder_others_could_enter_is_refused(node: Node, port: int, mode: int) -> None:
    node.run_dir.chmod(mode)
    with pytest.raises(InvalidInput, match=f"has mode {mode:04o} .* allowed: mode 0700"):
        node.lease(http(port))


def test_a_run_folder_of_another_user_or_none_is_refused(
    node: Node, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        acquire([http(port)], run_dir=node.run_dir / "absent", owner_pid=1)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(InvalidInput, match="allowed: mode 0700, owner uid 4242"):
        node.lease(http(port))


def test_a_holder_of_another_user_is_refused(node: Node, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    node.lease(http(port))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert socket_protocol.has_our_user(ours)
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        assert not socket_protocol.has_our_user(ours)
    monkeypatch.undo()
    monkeypatch.setattr(sockets, "has_our_user", lambda connection: False)
    with pytest.raises(NotReady, match="runs as another user"):
        node.lease(http(port))


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ([http(0)], "listen.http.port is 0; allowed 1 to 65535"),
        ([http(65536)], "listen.http.port is 65536; allowed 1 to 65535"),
        ([http(8000, "example.org")], "listen.http.host is 'example.org'; allowed: an IPv4 or IPv6 address"),
        ([http(8000), grpc(8000)], "listen has http 127.0.0.1:8000, grpc 127.0.0.1:8000; allowed: each address once"),
    ],
)
def test_impossible_endpoints_are_refused(node: Node, endpoints: list[Endpoint], message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        node.lease(*endpoints)
    assert refusal.value.message.startswith(message)


def test_an_address_of_another_machine_is_refused(node: Node, port: int) -> None:
    with pytest.raises(InvalidInput, match=r"cannot listen on 192.0.2.1 port \d+: Cannot assign"):
        node.lease(http(port, "192.0.2.1"))


def test_the_holder_is_small(node: Node, port: int) -> None:
    status = Path(f"/proc/{node.lease(http(port)).holder_pid}/status").read_text()
    resident_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident_kb < 16_000


def test_a_lease_can_be_closed_twice(node: Node, port: int) -> None:
    with closing(node.lease(http(port))) as lease:
        lease.close()
    assert not lease.is_held
