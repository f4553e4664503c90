"""What does the ingress replica spend its time on, with 64 connections scoring single transactions?

py-spy samples the replica twice under the same load: threads that hold the GIL, and all threads. Each sample goes to the
function group of its innermost known function. The first sampling says what Python costs; the second where threads are,
so what it has more is native code, or waiting for the GIL, a CPU or the store. Each thread's CPU time is the kernel's
own figure, and perf, where it is installed, says in which library it is spent.

    python -m benchmarks profile [--quick] [--protocol http|grpc]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import bodies, generator
from benchmarks.fraud import GRPC_SCORE, JSON, SCORE
from benchmarks.generator import Load, write_bodies
from benchmarks.history import feed
from benchmarks.measure import save
from benchmarks.server import HeadroomServer
from benchmarks.subject import environment_of
from benchmarks.tools import missing

GROUPS: tuple[tuple[str, str], ...] = (
    ("decode", r"\bdecode \(serve/ingress/wire|_transaction \(|json_errors"),
    ("encode", r"\bencode \(serve/ingress/wire|_encode \(serve/batching|_response \(serve/ingress/wire"),
    ("reply, ledger, metrics, log", r"(\b_?reply|_render|server_timing|\bhead) \(|ingress/ledger|serve/observability"),
    ("HTTP: sockets, parsing", r"serve/ingress/http"),
    ("gRPC: sockets, framing", r"serve/ingress/grpc|grpc/"),
    ("gate, admission, collector", r"ingress/(gate|admission)|batching/collector|serve/context|budgets/deadline"),
    ("explain", r"(\b_explain|contributions|\breasons) \(|xgboost/|kernels/shap"),
    ("score", r"backends/tree|kernels/(trees|forest|compiled)|\bscore \("),
    ("store: fetch", r"(\b_?fetch\w*|_stored|_states) \(serve/(features|pipelines)"),
    ("windows", r"features/windows|kernels/windows|assemble_row"),
    ("store: commit", r"features/(embedded|writer)"),
    ("forming, runner", r"batching/(forming|runner|arrival)|serve/budgets"),
    ("flow", r"serve/pipelines"),
    ("Ray", r"ray/"),
    ("event loop", r"uvloop|asyncio"),
)
OTHER = "other"
_WAITS_FOR_WORK = re.compile(r"(threading|selectors|queue|socket|http)\.py:\d+\)$|^[^;]*(_poll_wrapper|MainThread)")
"""How the stacks end of threads that have nothing to do: in a lock, a selector, or uvloop's run_forever."""
_THREAD = re.compile(r"^thread \((\d+)\)(?:: ([^;]*))?")
SAMPLES_PER_S = 250


def group_of(stack: str) -> str:
    """The function group of a collapsed stack: `thread;outer (file:line);…;inner (file:line)`."""
    for frame in reversed(stack.split(";")[1:]):
        for name, pattern in GROUPS:
            if re.search(pattern, frame):
                return name
    return OTHER


def py_spy(pid: int, seconds: float, folder: Path, flag: str) -> Counter[str]:
    """Samples by collapsed stack, the thread first."""
    file = folder / f"stacks{flag}"
    subprocess.run(
        [str(Path(sys.executable).parent / "py-spy"), "record", "-p", str(pid), "-d", f"{seconds:g}", "-f", "raw",
         "-r", str(SAMPLES_PER_S), "--threads", "--nonblocking", flag, "-o", str(file)],
        check=True, capture_output=True,
    )  # fmt: skip
    counts: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, number = line.rpartition(" ")
        counts[stack] += int(number)
    return counts


def by_group(counts: Counter[str]) -> Counter[str]:
    """Samples by function group."""
    groups: Counter[str] = Counter()
    for stack, number in counts.items():
        groups[group_of(stack)] += number
    return groups


def table(with_gil: Counter[str], everyone: Counter[str], seconds: float) -> list[dict[str, Any]]:
    """Per function group: its share of the samples that hold the GIL, and how many threads are in it at a time."""
    held = by_group(with_gil)
    present = by_group(Counter({stack: n for stack, n in everyone.items() if not _WAITS_FOR_WORK.search(stack)}))
    samples = SAMPLES_PER_S * seconds
    rows = [
        {
            "group": group,
            "share_of_gil": round(held[group] / max(1, held.total()), 4),
            "threads_holding_gil": round(held[group] / samples, 3),
            "threads_there": round(present[group] / samples, 3),
        }
        for group in {*held, *present}
    ]
    return sorted(rows, key=lambda row: (-row["share_of_gil"], -row["threads_there"]))


def thread_names(counts: Counter[str]) -> dict[int, str]:
    """Python's threads by their id in the kernel."""
    found = (_THREAD.match(stack) for stack in counts)
    return {int(match[1]): match[2] or "unnamed" for match in found if match}


def thread_cores(pid: int, seconds: float) -> dict[int, float]:
    """CPU seconds per second of each thread, from the kernel, over `seconds`."""
    process = psutil.Process(pid)
    before = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    time.sleep(seconds)
    after = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    return {tid: (used_s - before.get(tid, 0.0)) / seconds for tid, used_s in after.items()}


def perf(pid: int, seconds: float, folder: Path, names: dict[int, str]) -> list[dict[str, Any]] | None:
    """Share of the process's CPU time by thread and library, 1 % and above; None where perf is missing or forbidden."""
    data = folder / "perf.data"
    record = ["perf", "record", "-F", "499", "-p", str(pid), "-o", str(data), "--", "sleep", f"{seconds:g}"]
    if missing("perf") or subprocess.run(record, capture_output=True, check=False).returncode != 0:
        return None
    # What perf report calls pid is each thread's own id.
    report = ["perf", "report", "-i", str(data), "--stdio", "--percent-limit", "1", "-s", "pid,dso"]
    output = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*([\d.]+)%\s+(\d+):\S+\s+(\[JIT\]|\S+)", output, re.MULTILINE)
    return [
        {"thread": names.get(int(tid), "native"), "library": library, "share_of_cpu": round(float(share) / 100, 4)}
        for share, tid, library in found
    ]


@contextmanager
def under_load(load: Load) -> Iterator[dict[str, Any]]:
    """Keeps the load up during the block; the generator's result is in the dictionary after it."""
    result: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: result.update(generator.run(load)))
    thread.start()
    time.sleep(load.warmup_s)
    yield result
    thread.join()


def main() -> None:
    """Starts a server, fills its windows, profiles it under load, writes results/profile.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short samples, not written to results/")
    parser.add_argument("--protocol", choices=("http", "grpc"), default="http")
    options = parser.parse_args()
    seconds = 3.0 if options.quick else 10.0
    past, live = bodies.synthetic(1, 32_000, 10_000, int(time.time()))
    with tempfile.TemporaryDirectory(prefix="headroom-profile-") as name:
        folder = Path(name)
        with HeadroomServer(folder / "server") as server:
            fed = feed(server, past.part(-10_000) if options.quick else past)
            load = make_load(server, folder, live, options.protocol, 4 * seconds + 8)
            payload = {"protocol": options.protocol, "connections": load.connections, "server": environment_of(server),
                       "history": fed.transactions, **profile(server, load, seconds, folder)}  # fmt: skip
    for row in payload["groups"]:
        print(f"  {row['group']:30} {row['share_of_gil']:6.1%} of the GIL, {row['threads_there']:.2f} threads there")
    print(f"written to {save('profile', payload, is_quick=options.quick)}")


def make_load(server: HeadroomServer, folder: Path, live: bodies.Transactions, protocol: str, seconds: float) -> Load:
    """64 connections in a closed loop for as long as the profilers need."""
    if protocol == "grpc":
        messages = write_bodies(folder / "grpc.bin", bodies.score_grpc(live, "p-"))
        return Load(server.grpc(GRPC_SCORE), messages, 64, seconds, protocol="grpc")
    requests = write_bodies(folder / "unary.bin", bodies.score_json(live, "p-"))
    return Load(server.http(SCORE), requests, 64, seconds, headers=JSON)


def profile(server: HeadroomServer, load: Load, seconds: float, folder: Path) -> dict[str, Any]:
    """The tables; the profilers take turns, for each slows the replica down a little."""
    (pid,) = (process.pid for process in server.processes())
    with under_load(load) as result:
        cores = thread_cores(pid, seconds)
        with_gil = py_spy(pid, seconds, folder, "--gil")
        everyone = py_spy(pid, seconds, folder, "--idle")
        names = thread_names(everyone)
        libraries = perf(pid, seconds, folder, names)
    busiest = sorted(cores.items(), key=lambda item: -item[1])[:12]
    return {
        "question": "what does the replica spend its time on?",
        "ok_per_s_while_profiled": result["rate_achieved"],
        "gil_held": round(with_gil.total() / SAMPLES_PER_S / seconds, 3),
        "groups": table(with_gil, everyone, seconds),
        "threads": [{"thread": names.get(tid, "native"), "cores": round(used, 3)} for tid, used in busiest],
        "libraries": libraries,
    }


if __name__ == "__main__":
    main()
