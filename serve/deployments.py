"""The Ray Serve classes: thin shells around what `serve.assembly` puts together. No request passes through Ray here.

Heavy imports happen inside, after the environment they read has been set.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from serve.settings import Settings, SettingsError, Tunables, cache_dir, parse

if TYPE_CHECKING:
    from serve.assembly.replica import Replica

log = logging.getLogger("serve")


class Ingress:
    """One ingress replica. Ray gives it health checks, tunables and the order to leave."""

    def __init__(self, settings: Settings) -> None:
        """Returns when the replica answers: that is when Ray calls it ready."""
        self._settings = settings
        self._replica: Replica | None = None
        self._tunables = Tunables()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray calls it before the first request, and again whenever `user_config` changes.

        A replica does not start with tunables that are wrong. One that serves goes on with those it has and says so in
        the log: raising would make Ray replace it by one that cannot start.
        """
        if self._replica is None:
            tunables = parse(Tunables, user_config, "user_config")
            await asyncio.get_running_loop().run_in_executor(None, self._start, tunables)
            return
        try:
            tunables = parse(Tunables, user_config, "user_config")
            self._replica.reconfigure(tunables)
            log.info("applied %s", tunables)
        except SettingsError as error:
            log.error("the tunables stay as they are: %s", error)

    def _start(self, tunables: Tunables) -> None:
        os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir(self._settings) / "numba"))
        from serve.assembly.replica import Replica
        from serve.observability.logs import configure_logging

        configure_logging(tunables.log_level)
        replica = Replica(self._settings, owner_pid=os.getppid(), progress=log.info)
        replica.start(tunables)
        self._replica = replica

    def check_health(self) -> None:
        """Raises when only a new process can help."""
        if self._replica is not None:
            self._replica.check()

    async def __del__(self) -> None:
        """Ray's last call to a replica it stops: drains."""
        replica, self._replica = self._replica, None
        if replica is not None:
            await asyncio.get_running_loop().run_in_executor(None, replica.close)
