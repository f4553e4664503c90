from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from serve.observability.process import NO_PROCESS, ProcessIdentity, boot_number, is_alive, this_process


def test_the_calling_process_is_alive() -> None:
    assert this_process().pid == os.getpid()
    assert is_alive(this_process())


def test_a_reused_process_id_is_not_the_process_that_had_it() -> None:
    me = this_process()
    assert not is_alive(dataclasses.replace(me, start_ticks=me.start_ticks - 1))
    assert not is_alive(dataclasses.replace(me, boot=me.boot + 1))


def test_no_process_is_never_alive() -> None:
    assert not is_alive(NO_PROCESS)
    assert not is_alive(ProcessIdentity(-1, 0, boot_number()))


def introduce_and_wait(pipe: Connection) -> None:
    pipe.send(this_process())
    pipe.recv()


def test_a_killed_process_is_dead_before_its_parent_collects_it() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=introduce_and_wait, args=(theirs,), daemon=True)
    child.start()
    identity = ours.recv()
    assert identity.pid == child.pid
    assert is_alive(identity)
    os.kill(identity.pid, signal.SIGKILL)
    os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert not is_alive(identity)
    child.join(30)
