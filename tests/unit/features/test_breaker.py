"""The breaker: closed until failures in a row, open for a while, then a trial decides. The clock is passed in."""

from __future__ import annotations

from serve.features.breaker import Breaker

OPEN_NS = 500


def breaker(num_failures: int = 0) -> Breaker:
    """After so many failures at time 1000."""
    one = Breaker(failures_to_open=3, open_ns=OPEN_NS)
    for _ in range(num_failures):
        one.failed(1000)
    return one


def test_new_breaker_is_closed_and_allows_calls():
    assert breaker().allows(0)
    assert not breaker().is_open


def test_failures_below_the_limit_leave_it_closed():
    assert breaker(2).allows(1000)
    assert not breaker(2).is_open


def test_failures_in_a_row_open_it_for_the_whole_time():
    assert breaker(3).is_open
    assert not breaker(3).allows(1000)
    assert not breaker(3).allows(1000 + OPEN_NS - 1)


def test_success_in_between_starts_the_count_anew():
    one = breaker(2)
    one.succeeded()
    one.failed(1001)
    one.failed(1002)
    assert one.allows(1002)


def test_trial_is_allowed_when_the_time_is_over_and_its_success_closes_it():
    one = breaker(3)
    assert one.allows(1000 + OPEN_NS)
    assert one.is_open
    one.succeeded()
    assert not one.is_open
    one.failed(2000)
    assert one.allows(2000)


def test_failure_of_the_trial_opens_it_again_at_once_for_the_whole_time():
    one = breaker(3)
    one.failed(1000 + OPEN_NS)
    assert one.is_open
    assert not one.allows(1000 + 2 * OPEN_NS - 1)
    assert one.allows(1000 + 2 * OPEN_NS)
