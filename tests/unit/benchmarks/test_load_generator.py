"""The load generator against tiny HTTP/1.1 servers whose behaviour is known: it must report what they did."""

from __future__ import annotations

import collections
import itertools
import json
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.benchmarks.load_peers import (
    BUSY,
    CHUNKED,
    CLOSING,
    MARKER,
    OK,
    SOURCES,
    TO_THE_END,
    generate,
    http_server,
    refuse,
)


def stall_once(at: int) -> Callable[[int, bytes], bytes]:
    def answer(index: int, _: bytes) -> bytes:
        if index == at:
            time.sleep(0.5)  # the whole server stands still, not one connection
        return OK

    return answer


def test_open_loop_charges_a_stall_to_every_request_that_was_due(tmp_path: Path) -> None:
    with http_server(stall_once(at=50)) as (_, port):
        run = generate(tmp_path, port, "--rate", "200", "--duration-s", "1", "--connections", "4")
    assert run.result["ok"] == 200
    assert 400e3 < run.result["latency_us"]["p99"] < 900e3
    # 100 requests were due while nobody answered: every later one waited a little less.
    assert sum(latency > 250 for latency in run.latencies_ms()) >= 45
    assert run.result["latency_us"]["max"] >= 495e3
    assert run.result["generator"]["schedule_lag_us"]["count"] < 200 - 80, "waiting for the server is not our lag"


def test_closed_loop_lets_the_stalled_server_slow_the_load_down(tmp_path: Path) -> None:
    with http_server(stall_once(at=50)) as (_, port):
        run = generate(tmp_path, port, "--mode", "closed", "--duration-s", "0.7", "--connections", "4")
    assert run.result["offered"] == run.result["ok"] > 50
    assert sum(latency > 250 for latency in run.latencies_ms()) == 4, "one request for each connection"
    assert run.result["latency_us"]["p50"] < 100e3


def test_rate_is_kept_on_an_even_schedule(tmp_path: Path) -> None:
    with http_server(lambda *_: OK) as (server, port):
        run = generate(
            tmp_path,
            port,
            "--rate",
            "500",
            "--duration-s",
            "0.5",
            "--warmup-s",
            "0.1",
            "--connections",
            "16",
            "--items",
            "32",
        )
    assert run.result["offered"] == run.result["sent"] == run.result["ok"] == 250
    assert len(server.bodies) == 300, "the warm-up is sent, but not counted"
    scheduled_us = sorted(float(row["scheduled_us"]) for row in run.rows)
    assert scheduled_us == pytest.approx([2000 * i for i in range(250)], abs=0.2)
    assert all(float(row["sent_us"]) >= float(row["scheduled_us"]) for row in run.rows), "never early"
    assert run.result["rate_achieved"] == pytest.approx(500, rel=0.2)
    assert run.result["rows_per_s"] == pytest.approx(32 * run.result["rate_achieved"], rel=0.01)


def test_poisson_arrivals_repeat_with_the_seed_and_have_exponential_gaps(tmp_path: Path) -> None:
    flags = ("--rate", "4000", "--duration-s", "0.25", "--arrivals", "poisson", "--in-flight", "1", "--seed")
    with http_server(lambda *_: OK) as (_, port):
        schedules = [
            sorted(float(row["scheduled_us"]) for row in generate(tmp_path, port, *flags, seed).rows) for seed in "778"
        ]
    assert schedules[0] == schedules[1] != schedules[2]
    gaps = [later - earlier for earlier, later in itertools.pairwise(schedules[0])]
    assert statistics.mean(gaps) == pytest.approx(250, rel=0.15)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.15)


def test_bursts_keep_the_rate(tmp_path: Path) -> None:
    with http_server(lambda *_: OK) as (_, port):
        run = generate(tmp_path, port, "--rate", "400", "--duration-s", "0.25", "--arrivals-burst", "10")
    times = collections.Counter(float(row["scheduled_us"]) for row in run.rows)
    assert list(times.values()) == [10] * 10


def test_threads_share_one_schedule_the_bodies_and_the_numbers(tmp_path: Path) -> None:
    bodies = tuple(b"%d %s" % (i, MARKER.encode()) for i in range(4))
    flags = ("--rate", "400", "--duration-s", "0.25", "--threads", "2", "--connections", "5", "--unique-marker", MARKER)
    with http_server(lambda *_: OK) as (server, port):
        run = generate(tmp_path, port, *flags, bodies=bodies)
    assert sorted(float(row["scheduled_us"]) for row in run.rows) == pytest.approx(
        [2500 * i for i in range(100)], abs=0.2
    )
    assert server.num_connections == run.result["connections_opened"] == 5
    assert collections.Counter(body[:1] for body in server.bodies) == {b"0": 25, b"1": 25, b"2": 25, b"3": 25}
    assert len({body[2:] for body in server.bodies}) == 100


def test_statuses_are_counted_and_refusals_timed_apart(tmp_path: Path) -> None:
    with http_server(lambda index, _: BUSY if index % 4 == 3 else OK) as (_, port):
        run = generate(
            tmp_path, port, "--rate", "400", "--duration-s", "0.5", "--timeline-ms", "100", "--deadline-ms", "4000"
        )
    assert run.result["by_status"] == {"200": 150, "503": 50}
    assert (run.result["latency_us"]["count"], run.result["latency_refused_us"]["count"]) == (150, 50)
    assert sum(step["ok"] for step in run.result["timeline"]) == 150
    assert sum(step["refused"] for step in run.result["timeline"]) == 50
    assert (run.result["goodput"], run.result["late"]) == (150, 0)


def test_quantiles_are_within_one_per_cent_of_the_recorded_latencies(tmp_path: Path) -> None:
    with http_server(stall_once(at=20)) as (_, port):
        run = generate(tmp_path, port, "--rate", "500", "--duration-s", "0.7", "--deadline-ms", "100")
    exact = sorted(run.latencies_ms())
    for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}.items():
        rank = -int(-share * len(exact) // 1) - 1
        assert run.result["latency_us"][name] == pytest.approx(1000 * exact[rank], rel=0.01), name
    assert run.result["late"] == sum(latency > 100 for latency in exact) > 0


@pytest.mark.parametrize("answer", [CLOSING, TO_THE_END])
def test_a_closing_server_costs_a_new_connection_and_no_failure(tmp_path: Path, answer: bytes) -> None:
    with http_server(lambda index, _: answer if index % 2 else OK) as (server, port):
        run = generate(tmp_path, port, "--rate", "400", "--duration-s", "0.25", "--connections", "4")
    assert run.result["ok"] == 100
    assert server.num_connections >= 4 + 50 - 1


def test_an_idle_connection_may_be_closed_without_a_failure(tmp_path: Path) -> None:
    with http_server(lambda *_: OK, closes_after=OK) as (server, port):
        run = generate(tmp_path, port, "--rate", "80", "--duration-s", "0.25", "--connections", "4")
    assert run.result["ok"] == 20
    assert server.num_connections >= 20


def test_answers_are_read_chunked_and_in_pieces(tmp_path: Path) -> None:
    pieces = [
        CHUNKED,
        [CHUNKED[:30], CHUNKED[30:49], CHUNKED[49:]],
        [OK[:5], OK[5:]],
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ]
    with http_server(lambda index, _: pieces[index % 4]) as (server, port):
        run = generate(tmp_path, port, "--rate", "200", "--duration-s", "0.4", "--connections", "2")
    assert run.result["by_status"] == {"200": 80}
    assert server.num_connections == 2


def test_a_reset_before_the_answer_is_a_failure_or_by_choice_sent_again(tmp_path: Path) -> None:
    with http_server(lambda index, _: None if index == 30 else OK) as (_, port):
        run = generate(tmp_path, port, "--rate", "200", "--duration-s", "0.4", "--connections", "4")
    assert (run.result["ok"], run.result["failed"]["reset"], run.result["resent"]) == (79, 1, 0)
    with http_server(lambda index, _: None if index == 30 else OK) as (server, port):
        run = generate(
            tmp_path, port, "--rate", "200", "--duration-s", "0.4", "--retry-reset", bodies=(MARKER.encode(),)
        )
    assert (run.result["ok"], run.result["failed"]["reset"], run.result["resent"]) == (80, 0, 1)
    assert len(server.bodies) == 81


def test_what_is_not_http_is_a_protocol_failure(tmp_path: Path) -> None:
    with http_server(lambda index, _: b"220 smtp.example ESMTP\r\n\r\n" if index < 5 else OK) as (_, port):
        run = generate(tmp_path, port, "--rate", "200", "--duration-s", "0.25")
    assert (run.result["ok"], run.result["failed"]["protocol"]) == (45, 5)


def test_an_answer_that_never_comes_times_out_from_the_scheduled_time(tmp_path: Path) -> None:
    with http_server(lambda index, _: b"" if index == 10 else OK) as (_, port):
        run = generate(
            tmp_path, port, "--rate", "200", "--duration-s", "0.25", "--connections", "4", "--timeout-ms", "1000"
        )
    assert (run.result["ok"], run.result["failed"]["timeout"]) == (49, 1)
    (row,) = [row for row in run.rows if row["outcome"] == "timeout"]
    assert float(row["finished_us"]) - float(row["scheduled_us"]) == pytest.approx(1e6, rel=0.25)


def test_the_bound_on_outstanding_requests_is_kept_and_counted(tmp_path: Path) -> None:
    with http_server(lambda *_: b"") as (server, port):
        run = generate(
            tmp_path, port, "--rate", "200", "--duration-s", "0.25", "--in-flight", "7", "--timeout-ms", "600"
        )
    assert (run.result["offered"], run.result["sent"], run.result["not_sent"]) == (50, 7, 43)
    assert len(server.bodies) == 7


def test_a_server_that_goes_away_shows_as_refused_connections(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once_and_leave() -> None:
            peer, _ = listener.accept()
            listener.close()
            peer.recv(65536)
            peer.sendall(CLOSING)
            peer.close()

        thread = threading.Thread(target=answer_once_and_leave)
        thread.start()
        run = generate(
            tmp_path, listener.getsockname()[1], "--rate", "100", "--duration-s", "0.3", "--connections", "1"
        )
        thread.join()
    assert (run.result["ok"], run.result["failed"]["connect"]) == (1, 29)


def test_bodies_go_round_in_order_with_unique_numbers(tmp_path: Path) -> None:
    bodies = (b'{"id":"%s"}' % MARKER.encode(), b'{"ids":["%s","%s"]}' % (MARKER.encode(), MARKER.encode()), b"{}")
    flags = (
        "--rate",
        "200",
        "--duration-s",
        "0.25",
        "--connections",
        "1",
        "--unique-marker",
        MARKER,
        "--unique-start",
        "41",
    )
    with http_server(lambda *_: OK) as (server, port):
        generate(tmp_path, port, *flags, bodies=bodies)
    sent = [json.loads(body) for body in server.bodies]
    assert sent[:4] == [{"id": "000000000041"}, {"ids": ["000000000042", "000000000043"]}, {}, {"id": "000000000044"}]
    ids = [name for body in sent for name in [body.get("id"), *body.get("ids", [])] if name]
    assert len(ids) == len(set(ids)) == 51


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--url", "http://192.0.2.1/", "--rate", "1"), "host '192.0.2.1'; allowed 127.0.0.0/8, [::1] or localhost"),
        (("--url", "http://example.org/", "--rate", "1"), "pass --allow-remote"),
        (("--url", "https://127.0.0.1/", "--rate", "1"), "allowed http://host:port/path"),
        (("--url", "http://127.0.0.1/"), "--rate is missing"),
        (("--rate", "nan"), "--rate is 'nan'; allowed 0.001 to 1e+07"),
        (("--connections", "0"), "--connections is '0'; allowed a whole number, 1 to 60000"),
        (("--protocol", "h3"), "--protocol is 'h3'; allowed http1 or grpc"),
        (("--rate", "1", "--unique-marker", "ID"), "allowed 10 to 19 characters"),
        (("--bogus",), "unknown flag '--bogus'"),
        (("--rate",), "--rate needs a value"),
        (("--url", "http://127.0.0.1/", "--rate", "1", "--bodies", __file__), "cut off after 0 records"),
    ],
)
def test_wrong_usage_is_refused_by_name(flags: tuple[str, ...], message: str) -> None:
    refused = refuse(*flags)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_no_server_is_an_error_of_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    refused = refuse("--url", f"http://127.0.0.1:{port}/", "--rate", "1")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "Connection refused" in refused.stderr


def test_missing_headers_are_named_by_their_package(tmp_path: Path) -> None:
    command = ["make", "-C", str(SOURCES), f"BUILD={tmp_path}", "CPPFLAGS=-nostdinc"]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    assert made.returncode != 0
    assert "nghttp2/nghttp2.h is missing; install the Debian package libnghttp2-dev" in made.stderr
