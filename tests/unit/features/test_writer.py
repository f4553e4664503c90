"""The writer does one job at a time and lets its caller go at the deadline; the housekeeper goes on after failures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from serve.features.store import StoreFailed
from serve.features.writer import Housekeeper, Writer

NEVER_NS = 1 << 62
PAST_NS = 0
PATIENCE_S = 30


@pytest.fixture
def writer() -> Iterator[Writer]:
    one = Writer()
    yield one
    one.close()


def fail(error: Exception) -> None:
    raise error


def event_of(writer: Writer, work: object, deadline_ns: int = NEVER_NS) -> str:
    with pytest.raises(StoreFailed) as failure:
        writer.run(work, deadline_ns)  # type: ignore[arg-type]
    return failure.value.event


def until_free(writer: Writer) -> None:
    """Waits until the late job has ended."""
    assert writer._last is not None
    assert writer._last.done.acquire(timeout=PATIENCE_S)
    writer._last.done.release()


def test_result_comes_back_and_the_work_ran_on_the_writers_thread(writer):
    assert writer.run(lambda: threading.current_thread().name, NEVER_NS) == "store-writer"
    assert [writer.run(lambda n=n: n, NEVER_NS) for n in range(100)] == list(range(100))


def test_failure_of_the_store_reaches_the_caller_and_the_writer_goes_on(writer):
    assert event_of(writer, lambda: fail(StoreFailed("full"))) == "full"
    assert writer.run(lambda: 1, NEVER_NS) == 1


def test_any_other_exception_is_logged_and_becomes_a_failure_of_the_store(writer, caplog):
    with caplog.at_level(logging.ERROR):
        assert event_of(writer, lambda: fail(ZeroDivisionError("boom"))) == "error"
    assert "ZeroDivisionError" in caplog.text
    assert writer.run(lambda: 1, NEVER_NS) == 1


def test_late_job_lets_its_caller_go_refuses_the_next_at_once_and_is_still_done(writer):
    may_end, done = threading.Event(), []

    def work() -> None:
        assert may_end.wait(PATIENCE_S)
        done.append("late")

    deadline_ns = time.monotonic_ns() + 20_000_000
    assert event_of(writer, work, deadline_ns) == "late"
    assert time.monotonic_ns() >= deadline_ns
    assert event_of(writer, lambda: done.append("never")) == "busy"
    may_end.set()
    until_free(writer)
    assert writer.run(lambda: done.append("next"), NEVER_NS) is None
    assert done == ["late", "next"]


def test_deadline_that_has_passed_already_is_late_at_once(writer):
    may_end = threading.Event()
    assert event_of(writer, lambda: may_end.wait(PATIENCE_S), PAST_NS) == "late"
    may_end.set()


def test_late_jobs_failure_is_not_the_next_jobs(writer):
    may_end = threading.Event()

    def work() -> None:
        assert may_end.wait(PATIENCE_S)
        raise StoreFailed("damaged")

    assert event_of(writer, work, PAST_NS) == "late"
    may_end.set()
    until_free(writer)
    assert writer.run(lambda: 1, NEVER_NS) == 1


def test_closing_waits_for_the_job_under_way_and_refuses_later_ones():
    writer, began, may_end, done = Writer(), threading.Event(), threading.Event(), []

    def work() -> None:
        began.set()
        assert may_end.wait(PATIENCE_S)
        done.append(1)

    assert event_of(writer, work, PAST_NS) == "late"
    assert began.wait(PATIENCE_S)
    threading.Timer(0.02, may_end.set).start()
    writer.close()
    assert done == [1]
    assert event_of(writer, lambda: 1) == "closed"


def test_housekeeper_works_again_and_again_through_failures_and_ends_when_closed(caplog):
    rounds, enough = [], threading.Event()

    def work() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise StoreFailed("full", "no room left")
        if len(rounds) == 2:
            raise ZeroDivisionError
        if len(rounds) == 4:
            enough.set()

    housekeeper = Housekeeper(work, every_s=0.001)
    assert enough.wait(PATIENCE_S)
    housekeeper.close()
    num_rounds = len(rounds)
    assert not any(thread.name == "store-housekeeper" for thread in threading.enumerate())
    assert "no room left" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert len(rounds) == num_rounds
