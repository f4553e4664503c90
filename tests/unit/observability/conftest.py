"""Real processes that record metrics, driven over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from serve.observability.metrics import Metrics

# Forked, so that a test needs milliseconds per process; the metrics file is made in the child.
_context = multiprocessing.get_context("fork")


@dataclass
class Replica:
    """A process with `Metrics` of its own; `do` runs a function on them there. A generator gives several results."""

    process: BaseProcess
    pipe: Connection

    def do(self, action: Callable[[Metrics], Any]) -> Any:
        self.begin(action)
        return self.result()

    def begin(self, action: Callable[[Metrics], Any]) -> None:
        self.pipe.send_bytes(cloudpickle.dumps(action))

    def result(self) -> Any:
        assert self.pipe.poll(60), "the replica did not answer"
        return self.pipe.recv()

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(30)


def _serve(run_dir: Path, pipe: Connection) -> None:
    metrics = Metrics.open(run_dir, version="test")
    pipe.send("open")
    while True:
        result = pickle.loads(pipe.recv_bytes())(metrics)
        for one in result if isinstance(result, Iterator) else [result]:
            pipe.send(one)


@pytest.fixture
def start_replica(tmp_path: Path) -> Iterator[Callable[[], Replica]]:
    replicas: list[Replica] = []

    def start() -> Replica:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_serve, args=(tmp_path, theirs), daemon=True)
        process.start()
        replica = Replica(process, ours)
        replicas.append(replica)
        assert replica.result() == "open"
        return replica

    yield start
    for replica in replicas:
        if replica.process.is_alive():
            replica.kill()
        replica.pipe.close()
