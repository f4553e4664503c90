"""The Redis store: the embedded store's tests on it, and what only a server of its own can do: die, lag, fill up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from serve.features.redis import RedisStore
from serve.features.redis_connection import parse_address
from serve.features.store import Events, StoreFailed
from tests.redis_server import PASSWORD, RedisServer, until
from tests.unit.features.store_cases import (
    NEVER_NS,
    NOW_S,
    assert_same_windows,
    assert_windows_are_the_logs,
    commit,
    decision_of,
    event_of,
    events,
    events_of,
    joined,
    offline,
    part_of,
    score,
)

# Collected here as well, on the fixture below: what holds for one store holds for the other.
from tests.unit.features.test_embedded import (  # noqa: F401
    test_any_id_is_kept_apart_from_its_neighbours,
    test_batch_committed_between_reading_and_recording_comes_first,
    test_committing_the_same_batch_twice_records_it_once,
    test_customer_and_terminal_of_the_same_name_are_two_keys,
    test_decision_given_for_a_row_that_was_decided_before_is_ignored,
    test_long_decisions_are_kept,
    test_many_rows_of_one_key_in_one_batch_see_each_other_in_order,
    test_new_transaction_is_unknown_then_counted_and_its_decision_kept,
    test_online_windows_equal_the_backfill_whatever_the_batches,
    test_retry_gets_the_first_decision_and_is_counted_once_also_beside_new_rows,
    test_row_without_a_decision_is_neither_recorded_nor_counted,
)
from tests.unit.features.test_erasure import (  # noqa: F401
    test_erased_customer_cannot_be_found_labelled_or_answered_from_the_moment_on,
)
from tests.unit.features.test_labels import (  # noqa: F401
    test_batch_read_before_a_label_is_recorded_with_it,
    test_fraud_that_came_too_late_to_be_counted_is_labelled_and_counts_nothing,
    test_label_gives_the_entry_as_it_was_and_find_gives_it_with_the_label,
    test_label_meets_what_was_said_before_and_the_terminals_risk_follows,
    test_labels_of_other_terminals_and_of_customers_leave_the_rest_alone,
    test_many_labels_at_once_are_those_one_after_the_other,
    test_online_windows_equal_the_backfill_though_labels_come_between_the_batches,
)
from tests.unit.features.transaction_cases import batches

PATIENT_MS = 2_000.0
DAY_S = 86_400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path_factory.mktemp("redis"), "--maxmemory-policy", "noeviction").start()
    yield one
    one.kill()


def opened(server: RedisServer, **options: object) -> RedisStore:
    settings = {"timeout_ms": PATIENT_MS, "max_age_s": 30 * DAY_S, "housekeeping_s": 0.05} | options
    return RedisStore(parse_address(server.address), **settings)  # type: ignore[arg-type]


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    server.client().flushall()
    one = opened(server)
    yield one
    one.close()


def test_two_stores_at_once_agree_on_every_decision_and_count_every_event_once(server, store):
    other = opened(server)
    everything = events(400, seed=3)
    answers: dict[str, dict[str, bytes]] = {}

    def score_parts(name: str, one: RedisStore, seed: int) -> None:
        rng, mine = np.random.default_rng(seed), {}
        for rows in [*batches(400, rng, 40), *batches(400, rng, 40)]:
            batch = part_of(everything, rows)
            decisions = {n: decision_of(n, name) for n in batch.transaction_ids}
            decisions |= {batch.transaction_ids[s.row]: s.decision for s in score(one, batch, process=name)}
            mine |= decisions
        answers[name] = mine

    threads = [
        threading.Thread(target=score_parts, args=(n, s, i)) for i, (n, s) in enumerate((("a", store), ("b", other)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.close()
    assert answers["a"] == answers["b"]
    assert_windows_are_the_logs(store)


def test_a_thousand_rows_equal_the_backfill_over_one_round_trip_each(store):
    everything = events(1_000, seed=9)
    rng = np.random.default_rng(1)
    found = []
    for rows in batches(1_000, rng):
        batch = part_of(everything, rows)
        fetched = store.fetch(batch)
        found.append((fetched.customer, fetched.terminal))
        assert commit(store, batch, fetched) == []
    customer, terminal = offline(everything)
    assert_same_windows(joined([one for one, _ in found]), customer)
    assert_same_windows(joined([one for _, one in found]), terminal)


def test_killed_and_started_again_it_is_unavailable_and_then_knows_what_was_written(tmp_path):
    server = RedisServer(tmp_path / "redis", "--appendfsync", "always").start()
    store = opened(server)
    first, second = events(8, seed=1), events(8, seed=2)
    assert score(store, first) == []
    server.kill()
    assert event_of(lambda: store.fetch(second)) == "unavailable"
    assert event_of(lambda: store.find("1-0")) == "unavailable"
    server.start()
    until(lambda: answers(store, second), "the store answers again")
    assert [one.row for one in store.fetch(first).stored] == list(range(8))
    assert score(store, second) == []
    store.close()
    server.kill()


def answers(store: RedisStore, batch: Events) -> bool:
    try:
        store.fetch(batch)
    except StoreFailed:
        return False
    return True


def test_a_server_that_does_not_answer_is_late_and_the_next_answer_is_the_right_one(server):
    server.client().flushall()
    store = opened(server, timeout_ms=50.0)
    batch = events(4, seed=5)
    score(store, batch)
    server.client().execute_command("CLIENT", "PAUSE", "400", "ALL")
    assert event_of(lambda: store.fetch(batch)) == "late"
    until(lambda: answers(store, batch), "the store answers again")
    assert [one.decision for one in store.fetch(batch).stored] == [decision_of(n) for n in batch.transaction_ids]
    store.close()


def test_a_full_server_fails_as_full_still_reads_and_recovers(server, store):
    first = events(4, seed=1)
    score(store, first)
    client = server.client()
    client.config_set("maxmemory", "1mb")
    try:
        assert event_of(lambda: score(store, events(4, seed=2))) == "full"
        assert len(store.fetch(first).stored) == 4
    finally:
        client.config_set("maxmemory", "0")
    assert score(store, events(4, seed=2)) == []


def test_scripts_that_redis_forgot_are_sent_again(server, store):
    score(store, events(4, seed=1))
    server.client().script_flush()
    assert score(store, events(4, seed=2)) == []


def test_decisions_and_windows_expire(server):
    server.client().flushall()
    store = opened(server, max_age_s=100.0)
    score(store, events_of(("t1", "kim", "m1", NOW_S, 5)))
    client = server.client()
    assert 0 < client.pttl("{headroom}:x:t1") <= 100_000
    assert 0 < client.pttl("{headroom}:i:kim") <= 100_000
    assert client.pttl("{headroom}:c:kim") > 37 * DAY_S * 1000
    store.label({"t1": True})
    assert 0 < client.pttl("{headroom}:x:t1") <= 100_000
    store.close()


def test_an_erased_customer_leaves_memory_at_once_and_the_disk_after_compaction(server):
    server.client().flushall()
    audited: list[str] = []
    store = opened(server, compact_after_s=0.0, on_audit=lambda event, details: audited.append(event))
    batch = events_of(("secret-transaction", "secret-customer", "m1", NOW_S, 5), ("t2", "kim", "m1", NOW_S, 5))
    score(store, batch)
    assert b"secret-customer" in server.disk()
    store.erase("secret-customer")
    assert not [key for key in server.client().keys("*") if b"secret" in key]
    until(lambda: b"secret" not in server.disk(), "nothing of the customer is on the disk")
    assert store.find("t2") is not None
    assert audited == ["compacted"]
    assert store.fetch(events_of(("t3", "new", "m1", NOW_S + 60, 5))).terminal.totals[0, 0] == 2
    store.close()


def test_a_batch_that_was_read_before_an_erasure_does_not_bring_the_customer_back(store):
    batch = events_of(("t1", "kim", "m1", NOW_S, 5))
    score(store, batch)
    again = events_of(("t2", "kim", "m1", NOW_S + 60, 5))
    fetched = store.fetch(again)
    store.erase("kim")
    assert commit(store, again, fetched) == []
    assert store.fetch(events_of(("t3", "kim", "m2", NOW_S + 120, 5))).customer.totals[0, 0] == 1


def test_a_wrong_password_is_said_without_showing_one(server):
    store = RedisStore(
        parse_address(server.address.replace(PASSWORD, "guess")), timeout_ms=PATIENT_MS, max_age_s=1.0
    )  # fmt: skip
    with pytest.raises(StoreFailed) as failure:
        store.fetch(events(1, seed=1))
    assert "guess" not in str(failure.value)
    store.close()


def test_a_commit_behind_a_paused_server_is_late_and_the_next_busy(server):
    server.client().flushall()
    store = opened(server)
    first, second = events(2, seed=1), events(2, seed=2)
    fetched, fetched_second = store.fetch(first), store.fetch(second)
    server.client().execute_command("CLIENT", "PAUSE", "600", "WRITE")
    soon_ns = time.monotonic_ns() + 30_000_000
    assert event_of(lambda: commit(store, first, fetched, deadline_ns=soon_ns)) == "late"
    assert event_of(lambda: commit(store, second, fetched_second, deadline_ns=NEVER_NS)) == "busy"
    until(lambda: store.find(first.transaction_ids[0]) is not None, "the late commit is done")
    store.close()
