"""Whether a request may come in at all, and as whom. Open at first: everyone is one tenant; a foreign web page is not.

Without keys a loopback server must not be reachable from a page in somebody's browser, by a foreign `Origin` or, with a
rebound DNS name, by a foreign `Host`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from serve.context import DEFAULT_TENANT, EVERYONE, Principal, TenantId
from serve.errors import Forbidden

_MAX_REMEMBERED = 1024
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]@]+))(?::[0-9]*)?")


class Admission:
    """Decides by the request's head. Belongs to one event loop; verdicts on hosts are remembered, bounded."""

    def __init__(self, listen_host: str) -> None:
        self._listen_host = listen_host
        self._is_loopback = is_local_name(listen_host)
        self._own_hosts: set[str] = set()

    def admit(self, host: str | None, origin: str | None) -> tuple[TenantId, Principal]:
        """Who asks; raises Forbidden for a foreign `Host` or `Origin`."""
        if host is not None and host not in self._own_hosts:
            self._check_host(host)
        if origin is not None and not self._is_own_origin(origin, host):
            raise Forbidden(f"header Origin is {origin[:80]!r}; allowed without keys: this server's own pages")
        return DEFAULT_TENANT, EVERYONE

    def _check_host(self, host: str) -> None:
        if self._is_loopback and not is_local_name(host_name(host)):
            raise Forbidden(f"header Host is {host[:80]!r}; allowed without keys: localhost, 127.0.0.1, [::1]")
        if len(self._own_hosts) < _MAX_REMEMBERED:
            self._own_hosts.add(host)

    def _is_own_origin(self, origin: str, host: str | None) -> bool:
        scheme, _, authority = origin.partition("://")
        return scheme in ("http", "https") and host is not None and authority.lower() == host.lower()


def host_name(authority: str) -> str:
    """The host of `host:port`, `[v6]:port` or either alone; empty for anything else."""
    found = _AUTHORITY.fullmatch(authority)
    return "" if found is None else found["v6"] or found["name"]


def is_local_name(name: str) -> bool:
    """Whether a name means this machine and cannot be pointed elsewhere by DNS."""
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
