"""Which models serve, while the server runs: clients' loads and unloads, and a folder that is followed.

Asked by both listeners; asks the node's log, so that every replica does the same, and `ModelServices`, which does it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from serve.assembly.models import ModelServices
from serve.context import RequestContext
from serve.errors import Forbidden, HeadroomError, InvalidInput, Unsupported
from serve.ingress.blocking import BlockingWork
from serve.repository.control import ControlLog, Operation
from serve.repository.polling import Stamp, changes, stamp_of
from serve.repository.repository import Repository
from serve.settings import RepositorySettings

log = logging.getLogger(__name__)

_MAX_CONFIG_BYTES = 1 << 20

Parameters = Mapping[str, object]


class ModelControl:
    """Of one replica; loads and unloads take their time on a thread of their own."""

    def __init__(
        self, settings: RepositorySettings, repository: Repository, models: ModelServices, run_dir: Path
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._models = models
        self._log = ControlLog(run_dir / "control", self._carry_out)
        self._work = BlockingWork("the model repository", num_threads=1)
        self._stamps: Mapping[str, Stamp] = {}
        self._is_over = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="repository-poll", daemon=True)

    def open(self) -> None:
        """Catches up with the other replicas; from then on follows them, or the folder."""
        if self._settings.control == "explicit":
            self._log.open()
        elif self._settings.control == "poll":
            self._stamps = self._look()
            self._poller.start()

    def close(self) -> None:
        """Follows no more."""
        self._is_over.set()
        self._work.close()
        if self._settings.control == "explicit":
            self._log.close()
        elif self._poller.is_alive():
            self._poller.join()

    async def load(self, name: str, parameters: Parameters, context: RequestContext) -> None:
        """Loads a model on every replica. Raises HeadroomError with what is wrong."""
        self._check_allowed()
        operation = Operation("load", name, _config_of(parameters))
        await self._work.run(context, lambda: self._log.submit(operation))

    async def unload(self, name: str, parameters: Parameters, context: RequestContext) -> None:
        """Takes a model out of service on every replica. Raises HeadroomError with what is wrong."""
        self._check_allowed()
        for key, value in parameters.items():
            if key != "unload_dependents" or not isinstance(value, bool):
                raise InvalidInput(f"parameter {key[:64]!r} is not known; allowed: unload_dependents, true or false")
        operation = Operation("unload", name, with_parts=bool(parameters.get("unload_dependents")))
        await self._work.run(context, lambda: self._log.submit(operation))

    def _check_allowed(self) -> None:
        if self._settings.control != "explicit":
            raise Forbidden(
                f"explicit model load / unload is not allowed: repository.control is {self._settings.control}; "
                "set it to explicit"
            )

    def _carry_out(self, operation: Operation) -> None:
        if operation.kind == "load":
            self._models.load(operation.model, operation.config)
        else:
            self._models.unload(operation.model, with_parts=operation.with_parts)

    def _look(self) -> dict[str, Stamp]:
        return {name: stamp_of(self._repository.folder(name)) for name in self._repository.names()}

    def _poll(self) -> None:
        while not self._is_over.wait(self._settings.poll_s):
            try:
                now = self._look()
            except HeadroomError as error:
                log.warning("the model repository cannot be looked at: %s", error.message)
                continue
            found = changes(self._stamps, now)
            self._stamps = now
            for name in found.to_load:
                self._try(Operation("load", name))
            for name in found.to_unload:
                self._try(Operation("unload", name))

    def _try(self, operation: Operation) -> None:
        try:
            self._carry_out(operation)
            log.info("the model repository has changed: %s of %s", operation.kind, operation.model)
        except HeadroomError as error:
            log.warning("the model repository has changed, but %s", error.message)
        except Exception:
            log.exception("%s of model %s failed", operation.kind, operation.model)


def _config_of(parameters: Parameters) -> str:
    """The configuration given with a load; "" where there is none."""
    for key, value in parameters.items():
        if key.startswith("file:"):
            raise Unsupported(
                f"parameter {key[:64]!r}: model files are not taken from clients; put them in the repository"
            )
        if key != "config" or not isinstance(value, str):
            raise InvalidInput(
                f"parameter {key[:64]!r} is not known; allowed: config, a string of JSON", field=key[:64]
            )
    config = parameters.get("config", "")
    assert isinstance(config, str)
    if len(config) > _MAX_CONFIG_BYTES:
        raise InvalidInput(f"config takes {len(config)} bytes; allowed {_MAX_CONFIG_BYTES}", field="config")
    return config
