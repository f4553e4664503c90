"""The control log: every operation on every replica, in order, before it is acknowledged."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serve.errors import HeadroomError, InvalidInput, NotReady
from serve.repository.control import ControlLog, Operation
from tests.redis_server import until

WAIT_S = 20


class Replica:
    """Remembers what it was asked for; `fails` names models that it cannot load."""

    def __init__(self, folder: Path, *fails: str) -> None:
        self.done: list[Operation] = []
        self.fails = set(fails)
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.control = ControlLog(folder, self._apply)
        self.control.open()

    def _apply(self, operation: Operation) -> None:
        assert self.may_go_on.wait(WAIT_S)
        if operation.model in self.fails:
            raise InvalidInput(f"{operation.model} is broken")
        self.done.append(operation)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def replica(folder: Path, closing: ExitStack, *fails: str) -> Replica:
    made = Replica(folder, *fails)
    closing.callback(made.control.close)
    return made


def load(model: str) -> Operation:
    return Operation("load", model)


def test_an_operation_holds_on_every_replica_when_it_is_acknowledged(folder: Path, closing: ExitStack) -> None:
    replicas = [replica(folder, closing) for _ in range(3)]
    replicas[1].control.submit(load("m"))
    assert [one.done for one in replicas] == [[load("m")]] * 3


def test_nothing_is_acknowledged_before_the_slowest_has_followed(folder: Path, closing: ExitStack) -> None:
    first, slow = replica(folder, closing), replica(folder, closing)
    slow.may_go_on.clear()
    asking = threading.Thread(target=first.control.submit, args=(load("m"),))
    asking.start()
    until(lambda: first.done == [load("m")], "it holds where it was asked for")
    asking.join(0.2)
    assert asking.is_alive()
    slow.may_go_on.set()
    asking.join(WAIT_S)
    assert not asking.is_alive()
    assert slow.done == [load("m")]


def test_a_failure_where_it_was_asked_for_is_told_and_nobody_else_is_asked(folder: Path, closing: ExitStack) -> None:
    first, second = replica(folder, closing, "bad"), replica(folder, closing)
    with pytest.raises(InvalidInput, match="bad is broken"):
        first.control.submit(load("bad"))
    first.control.submit(load("good"))
    assert first.done == second.done == [load("good")]


def test_a_failure_elsewhere_is_told_with_who_has_failed(folder: Path, closing: ExitStack) -> None:
    first, second = replica(folder, closing), replica(folder, closing, "bad")
    with pytest.raises(NotReady, match=rf"not on every replica: replica {os.getpid()}-\d+: bad is broken"):
        first.control.submit(load("bad"))
    first.control.submit(load("good"))
    assert (first.done, second.done) == ([load("bad"), load("good")], [load("good")])


def test_operations_of_several_replicas_have_one_order(folder: Path, closing: ExitStack) -> None:
    replicas = [replica(folder, closing) for _ in range(3)]

    def ask(one: Replica, name: str) -> None:
        for number in range(10):
            one.control.submit(load(f"{name}{number}"))

    threads = [threading.Thread(target=ask, args=(one, name)) for one, name in zip(replicas, "abc", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(replicas[0].done) == 30
    assert replicas[0].done == replicas[1].done == replicas[2].done


def test_a_replica_that_comes_later_catches_up_before_it_serves(folder: Path, closing: ExitStack) -> None:
    first = replica(folder, closing)
    for name in ("a", "b"):
        first.control.submit(Operation("load", name, config='{"max_batch_size": 3}'))
    later = replica(folder, closing, "a")
    assert [one.model for one in later.done] == ["b"]
    assert later.done[0].config == '{"max_batch_size": 3}'
    first.control.submit(load("c"))
    assert later.done[-1] == load("c")


def test_a_new_server_begins_anew(folder: Path) -> None:
    first = Replica(folder)
    first.control.submit(load("m"))
    first.control.close()
    again = Replica(folder)
    assert again.done == []
    again.control.close()


def die_with(folder: Path, is_there: object) -> None:
    Replica(folder)
    is_there.set()  # type: ignore[attr-defined]
    threading.Event().wait()


def test_nobody_waits_for_a_replica_that_was_killed(folder: Path, closing: ExitStack) -> None:
    first = replica(folder, closing)
    context = multiprocessing.get_context("spawn")
    is_there = context.Event()
    process = context.Process(target=die_with, args=(folder, is_there))
    process.start()
    assert is_there.wait(WAIT_S)
    process.kill()
    process.join()
    first.control.submit(load("m"))
    assert first.done == [load("m")]
    assert len(list(folder.iterdir())) == 3  # lock, log and the one that lives


def test_an_operation_that_cannot_be_read_is_no_ones_end(folder: Path, closing: ExitStack) -> None:
    first, second = replica(folder, closing), replica(folder, closing)
    with (folder / "log").open("ab") as file:
        file.write(b"nonsense\n")
    first.control.submit(load("m"))
    assert first.done == second.done == [load("m")]


def test_errors_are_the_servers_own(folder: Path, closing: ExitStack) -> None:
    one = replica(folder, closing, "bad")
    with pytest.raises(HeadroomError):
        one.control.submit(load("bad"))
