"""The node's log of control operations: what one replica is asked to load or unload holds on every one before it is said.

Operations enter by `submit`, on any replica; each replica's `apply` gets every one of them, in the same order. Replicas
meet in a folder:

    lock      held while an operation is under way: one at a time
    log       the operations, a JSON line each
    <number>  one file per replica, locked as long as its process lives: how far it has come, and what went wrong

The operation is carried out where it was asked for first; if it fails there, nobody else hears of it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from serve.errors import HeadroomError, NotReady

log = logging.getLogger(__name__)

_POLL_S: Final = 0.02
_WAIT_S: Final = 900.0
"""How long the other replicas may take: a load may have to compile."""
_LOCK, _LOG = "lock", "log"


class Operation(msgspec.Struct, frozen=True):
    """A load or an unload."""

    kind: Literal["load", "unload"]
    model: str
    config: str = ""
    with_parts: bool = False
    """An unload takes an ensemble's models away, too."""


class _Progress(msgspec.Struct):
    """What a replica says of itself."""

    applied: int
    problem: str = ""
    """Of the last operation applied; empty where it went well."""


class ControlLog:
    """One replica's end. `apply` runs on one thread at a time, and raises HeadroomError with what is wrong."""

    def __init__(self, folder: Path, apply: Callable[[Operation], None]) -> None:
        self._folder = folder
        self._apply = apply
        self._lock = threading.Lock()
        self._num_applied = 0
        self._read_bytes = 0
        self._is_over = threading.Event()
        self._member: int
        self._thread = threading.Thread(target=self._follow, name="control-log", daemon=True)

    def open(self) -> None:
        """Catches up with what the other replicas have been asked for, and follows from then on. A log of replicas that
        are all gone is begun anew.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._held():
            if not list(self._others()):
                (self._folder / _LOG).unlink(missing_ok=True)
            self._member = os.open(self._folder / self._name(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._member, fcntl.LOCK_EX)
            self._catch_up()
            self._say("")
        self._thread.start()

    def close(self) -> None:
        """Leaves: nobody waits for this replica any more."""
        self._is_over.set()
        self._thread.join()
        os.close(self._member)
        (self._folder / self._name()).unlink(missing_ok=True)

    def submit(self, operation: Operation) -> None:
        """Carries it out here, then on every other replica; returns when it holds on all of them. Raises HeadroomError
        with what went wrong here or there.
        """
        with self._held():
            with self._lock:
                self._catch_up()
                self._apply(operation)
                with (self._folder / _LOG).open("ab") as file:
                    file.write(msgspec.json.encode(operation) + b"\n")
                    self._read_bytes = file.tell()
                self._num_applied += 1
                self._say("")
            problems = self._wait_for_others(self._num_applied)
        if problems:
            raise NotReady(
                f"{operation.kind} of '{operation.model}' holds here and not on every replica: {problems[0]}"
            )

    def _wait_for_others(self, number: int) -> list[str]:
        give_up_s = time.monotonic() + _WAIT_S
        while True:
            behind, problems = [], []
            for file in self._others():
                progress = _read_progress(file)
                if progress is None or progress.applied < number:
                    behind.append(file.name)
                elif progress.applied == number and progress.problem:
                    problems.append(f"replica {file.name}: {progress.problem}")
            if not behind:
                return problems
            if time.monotonic() > give_up_s:
                return [f"replica {behind[0]} has not followed within {_WAIT_S:.0f} s"]
            time.sleep(_POLL_S)

    def _follow(self) -> None:
        file = self._folder / _LOG
        while not self._is_over.wait(_POLL_S):
            try:
                if file.stat().st_size > self._read_bytes:
                    with self._lock:
                        self._catch_up()
            except FileNotFoundError:
                continue
            except Exception:
                log.exception("following the control log failed")

    def _catch_up(self) -> None:
        """Applies what is new. A failure is this replica's to tell, not to raise."""
        try:
            with (self._folder / _LOG).open("rb") as file:
                file.seek(self._read_bytes)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            if not line.endswith(b"\n"):
                return  # still being written
            problem = ""
            try:
                self._apply(msgspec.json.decode(line, type=Operation))
            except HeadroomError as error:
                problem = error.message
            except Exception as error:
                log.exception("a control operation failed")
                problem = str(error)
            self._read_bytes += len(line)
            self._num_applied += 1
            self._say(problem)

    def _say(self, problem: str) -> None:
        text = msgspec.json.encode(_Progress(self._num_applied, problem))
        os.pwrite(self._member, text.ljust(max(len(text), os.fstat(self._member).st_size)), 0)

    def _name(self) -> str:
        return f"{os.getpid()}-{id(self)}"

    def _others(self) -> Iterator[Path]:
        """Files of the other replicas that live; those of ended ones are removed."""
        for file in self._folder.iterdir():
            if file.name in (_LOCK, _LOG, self._name()):
                continue
            if _is_held(file):
                yield file
            else:
                file.unlink(missing_ok=True)

    @contextmanager
    def _held(self) -> Iterator[None]:
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_held(file: Path) -> bool:
    """Whether the process that made it lives."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_progress(file: Path) -> _Progress | None:
    try:
        return msgspec.json.decode(file.read_bytes().strip(), type=_Progress)
    except (OSError, msgspec.DecodeError):
        return None  # being written, or gone
