"""Opens a client of Redis by its address: a single server, Sentinel's present master, or a Cluster; TLS and password.

    redis://[user:password@]host[:port][/database]              rediss:// with TLS (?ssl_ca_certs=FILE)
    redis+sentinel://[user:password@]host:port,host:port/master[/database]
    redis+cluster://[user:password@]host:port,host:port

Called by `serve.features.redis`. The address may hold a password: it is never logged, `shown` is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_PORT = 6379
_SENTINEL_PORT = 26379
_SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. `service` is the master's name, for Sentinel."""

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int
    username: str | None
    password: str | None = field(repr=False)
    options: dict[str, Any]

    @property
    def shown(self) -> str:
        """For logs and messages: without user and password."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.kind} {hosts}{'/' + self.service if self.service else ''}"


def parse_address(text: str, password: str | None = None) -> Address:
    """Reads an address; `password` stands in where it has none. Raises ValueError saying what is wrong, without it."""
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"features.store begins with {parts.scheme!r}; allowed {', '.join(_SCHEMES)}")
    scheme, _, kind = parts.scheme.partition("+")
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, secret = login.partition(":")
    path = [unquote(part) for part in parts.path.split("/") if part]
    if kind == "sentinel" and not path:
        raise ValueError("features.store names no master; allowed redis+sentinel://HOST:PORT,…/MASTER")
    service = path.pop(0) if kind == "sentinel" else ""
    if len(path) > 1 or (path and (kind == "cluster" or not path[0].isdigit())):
        raise ValueError("features.store has a path that is no database; allowed a number, and none for a cluster")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise ValueError(f"features.store has the option {unknown[0]!r}; allowed {', '.join(_OPTIONS)}")
    if scheme == "rediss":
        options["ssl"] = True
    default_port = _SENTINEL_PORT if kind == "sentinel" else _PORT
    return Address(
        kind or "single", tuple(_host(one, default_port) for one in hosts.split(",")), service,
        int(path[0]) if path else 0, unquote(username) or None, unquote(secret) or password, options,
    )  # fmt: skip


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ValueError(
            "features.store has a host that is none; allowed HOST or HOST:PORT (a # before it is written %23)"
        )
    return host, port or default_port


class Lazily:
    """A client that is made when it is first used: a Cluster's is made by asking the cluster, which may be down."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._client: Any = None

    def __call__(self) -> Any:
        """The client; raises what making it raises."""
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client

    def close(self) -> None:
        """Ends its connections, if there are any."""
        with self._lock:
            if self._client is not None:
                self._client.close()


def connect(address: Address, timeout_s: float) -> Any:
    """A client that waits at most `timeout_s` for a connection and for an answer, and tries a broken one once more."""
    import redis
    from redis import cluster, sentinel
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    untyped: Any = cluster, sentinel
    cluster_node, watch_of = untyped[0].ClusterNode, untyped[1].Sentinel
    common = {
        "username": address.username, "password": address.password, **address.options,
        "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "socket_keepalive": True,
    }  # fmt: skip
    if address.kind == "cluster":
        common |= {"retry": Retry(NoBackoff(), 1)}
        return cluster.RedisCluster(startup_nodes=[cluster_node(*host) for host in address.hosts], **common)
    common |= {"db": address.database, "retry": Retry(NoBackoff(), 1)}
    if address.kind == "sentinel":
        watch = watch_of(list(address.hosts), socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        return watch.master_for(address.service, **common)
    (host, port), *_ = address.hosts
    return redis.Redis(host=host, port=port, **common)
