from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.observability.logs import (
    MAX_PENDING_ENTRIES,
    AccessEntry,
    AccessLog,
    configure_logging,
    format_entry,
    rfc3339,
)

WALL_NS = 1_769_846_709_123_456_789
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def entry(request_id: str = "r-1", **fields: Any) -> AccessEntry:
    return AccessEntry(
        request_id=request_id,
        protocol="http",
        endpoint="/v1/fraud/score",
        status="200",
        duration_ns=1_234_567,
        **fields,
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_holds_every_field_of_its_request() -> None:
    line = format_entry(
        WALL_NS,
        entry(
            traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01",
            items=3,
            pipeline="fraud",
            degraded=("features",),
            tenant="acme",
            error="overloaded",
            bytes_in=120,
            bytes_out=340,
        ),
    )
    assert line.endswith(b"\n")
    assert orjson.loads(line) == {
        "time": "2026-01-31T08:05:09.123Z",
        "request_id": "r-1",
        "trace_id": TRACE_ID,
        "protocol": "http",
        "endpoint": "/v1/fraud/score",
        "status": "200",
        "duration_ms": 1.235,
        "items": 3,
        "pipeline": "fraud",
        "degraded": ["features"],
        "tenant": "acme",
        "error": "overloaded",
        "bytes_in": 120,
        "bytes_out": 340,
    }


text = st.text(st.characters(codec=None, exclude_categories=()), max_size=600)


@given(request_id=text, tenant=text, traceparent=st.none() | text)
def test_whatever_a_client_sends_it_stays_one_bounded_line(
    request_id: str, tenant: str, traceparent: str | None
) -> None:
    line = format_entry(WALL_NS, entry(request_id, tenant=tenant, traceparent=traceparent))
    assert line.count(b"\n") == 1
    assert len(line) < 8_000
    assert len(orjson.loads(line)["request_id"]) <= 256


@pytest.mark.parametrize("traceparent", [None, "", "00-abc-def-01", TRACE_ID])
def test_what_is_no_traceparent_has_no_trace_id(traceparent: str | None) -> None:
    assert orjson.loads(format_entry(WALL_NS, entry(traceparent=traceparent)))["trace_id"] is None


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_999_999_999) == "1970-01-01T00:00:01.999Z"


def test_recorded_entries_are_in_the_file_in_order_after_close(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, wall_clock_ns=lambda: WALL_NS)
    log.start()
    log.record([entry("a"), entry("b")])
    log.record([entry("c")])
    log.close()
    assert [line["request_id"] for line in lines_of(path)] == ["a", "b", "c"]


def test_over_the_rate_errors_are_kept_and_the_rest_is_counted_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, max_lines_per_s=100, clock_ns=lambda: 0, wall_clock_ns=lambda: WALL_NS)
    log.record([entry(str(n), error="internal" if n % 100 == 0 else None) for n in range(5_000)])
    log.start()
    log.close()
    *kept, last = lines_of(path)
    assert len(kept) == 75
    assert sum(line["error"] is not None for line in kept) == 50
    assert last == {"time": "2026-01-31T08:05:09.123Z", "left_out": {"rate": 4_925}}


def test_a_writer_that_stands_still_costs_lines_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, max_lines_per_s=10**6)
    batch = [entry()] * 1_000
    for _ in range(50):  # not started: nobody takes the entries
        log.record(batch)
    log.start()
    log.close()
    num_kept = MAX_PENDING_ENTRIES // 1_000 * 1_000
    *kept, last = lines_of(path)
    assert (len(kept), last["left_out"]) == (num_kept, {"queue_full": 50_000 - num_kept})


def test_lines_lost_to_a_full_disk_are_reported_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    log = AccessLog(path)
    log.record([entry("lost")] * 3)
    log._drain()
    log._report_left_out(is_last=True)
    path.unlink()
    log.record([entry("kept")])
    log.start()
    log.close()
    kept, report = lines_of(path)
    assert kept["request_id"] == "kept"
    assert report["left_out"] == {"write_failed": 3}


def test_closing_a_log_that_was_never_started_returns(tmp_path: Path) -> None:
    AccessLog(tmp_path / "access.log").close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("serve", "kernels")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_server_logs_are_one_json_object_per_line_however_often_configured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for level in ("debug", "info"):
        configure_logging(level)
    logger = logging.getLogger("serve.somewhere")
    logger.debug("not shown")
    logger.warning("model %s\nis late", "fraud", extra={"request_id": "r-1"})
    try:
        raise ValueError("the cause")
    except ValueError:
        logger.exception("it failed")
    warning, failure = map(orjson.loads, capsys.readouterr().err.splitlines())
    assert warning.pop("time").endswith("Z")
    assert warning == {
        "level": "warning",
        "logger": "serve.somewhere",
        "message": "model fraud\nis late",
        "request_id": "r-1",
    }
    assert failure["exception"].endswith("ValueError: the cause")


def test_server_logs_take_extras_that_are_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("kernels").info("odd \ud800", extra={"shape": {1: object}})
    (line,) = capsys.readouterr().err.splitlines()
    assert orjson.loads(line)["message"] == "odd ?"
