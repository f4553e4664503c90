"""What does the ingress replica spend its time on, with 64 connections scoring single transactions?

py-spy samples the replica three times under the same load: threads on a CPU, threads holding the GIL, and all threads.
Each sample goes to the function group of its innermost known function; what waits there without a CPU waits for the GIL
or a lock. perf, where it is installed, adds what native code the CPU time is in, by library.

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

from benchmarks import bodies, generator
from benchmarks.fraud import GRPC_SCORE, JSON, SCORE
from benchmarks.generator import Load, write_bodies
from benchmarks.history import feed
from benchmarks.measure import save
from benchmarks.server import HeadroomServer
from benchmarks.subject import environment_of
from benchmarks.tools import missing

GROUPS: tuple[tuple[str, str], ...] = (
    ("HTTP: sockets, parsing", r"serve/ingress/http_connection|serve/ingress/http\.py|serve/ingress/http_request"),
    ("gRPC: sockets, framing", r"serve/ingress/grpc|grpc/aio|grpc/_"),
    ("gate, admission, collector", r"serve/ingress/(gate|admission)|batching/collector|serve/context|budgets/deadline"),
    ("reply, ledger, metrics, log", r"serve/ingress/ledger|serve/observability"),
    ("forming, runner", r"batching/(forming|runner|arrival)|budgets/(ladder|estimate|timings|wheel)"),
    ("decode", r"\bdecode \(.*ingress/wire|ingress/wire/json_errors"),
    ("encode", r"\b(encode|_encoded|_response) \(.*ingress/wire"),
    ("store: fetch", r"\b(fetch|_fetch|_read\w*|_snapshot) \(.*features/embedded"),
    ("windows", r"features/windows|kernels/windows"),
    ("score", r"backends/tree|kernels/(trees|forest|compiled)|\bscore \("),
    ("explain", r"\b(_explain|contributions|reasons) \(|kernels/shap|reference_shap"),
    ("store: commit", r"features/(embedded|writer)"),
    ("flow", r"serve/pipelines"),
    ("event loop", r"uvloop|asyncio"),
    ("Ray", r"ray/"),
)
IDLE = re.compile(r"^(wait|take|select|poll|_worker|run_forever|_poll_wrapper|main_loop|get|accept|recv|join|sleep)\b")
OTHER = "other"
SAMPLES_PER_S = 250


def group_of(stack: str) -> str:
    """The function group of a collapsed stack: `outer (file:line);…;inner (file:line)`."""
    for frame in reversed(stack.split(";")):
        for name, pattern in GROUPS:
            if re.search(pattern, frame):
                return name
    return OTHER


def is_idle(stack: str) -> bool:
    """Whether the innermost Python function is one that waits for work."""
    return IDLE.match(stack.rpartition(";")[2]) is not None


def py_spy(pid: int, seconds: float, folder: Path, *flags: str) -> Counter[str]:
    """Samples by collapsed stack, the thread's name first."""
    file = folder / f"stacks{''.join(flags)}"
    subprocess.run(
        [str(Path(sys.executable).parent / "py-spy"), "record", "-p", str(pid), "-d", f"{seconds:g}", "-f", "raw",
         "-r", str(SAMPLES_PER_S), "--threads", "--nonblocking", "-o", str(file), *flags],
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


def by_thread(counts: Counter[str]) -> Counter[str]:
    """Samples by thread name, numbers within it left out."""
    threads: Counter[str] = Counter()
    for stack, number in counts.items():
        name = stack.partition(";")[0]
        threads[re.sub(r"^thread \(\S+\)(: )?", "", name) or "unnamed"] += number
    return threads


def table(on_cpu: Counter[str], with_gil: Counter[str], everyone: Counter[str], seconds: float) -> list[dict[str, Any]]:
    """Per function group: share of the CPU samples, cores on a CPU, holding the GIL, and waiting for it or a lock."""
    busy, held = by_group(on_cpu), by_group(with_gil)
    present = by_group(Counter({stack: n for stack, n in everyone.items() if not is_idle(stack)}))
    samples = SAMPLES_PER_S * seconds
    rows = [
        {
            "group": group,
            "share_of_cpu": round(busy[group] / max(1, busy.total()), 4),
            "cores_on_cpu": round(busy[group] / samples, 3),
            "cores_holding_gil": round(held[group] / samples, 3),
            "cores_waiting": round(max(0, present[group] - busy[group]) / samples, 3),
        }
        for group in {*busy, *held, *present}
    ]
    return sorted(rows, key=lambda row: -row["share_of_cpu"])


def perf(pid: int, seconds: float, folder: Path) -> list[dict[str, Any]] | None:
    """Share of CPU time by library and by symbol, 2 % and above; None where perf is missing or not allowed."""
    data = folder / "perf.data"
    record = ["perf", "record", "-F", "499", "-p", str(pid), "-o", str(data), "--", "sleep", f"{seconds:g}"]
    if missing("perf") or subprocess.run(record, capture_output=True, check=False).returncode != 0:
        return None
    report = ["perf", "report", "-i", str(data), "--stdio", "--percent-limit", "2", "-F", "overhead,dso"]
    output = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*([\d.]+)%\s+(\S+)", output, re.MULTILINE)
    return [{"library": library, "share_of_cpu": round(float(share) / 100, 4)} for share, library in found]


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
        print(f"  {row['group']:30} {row['share_of_cpu']:6.1%}  cpu {row['cores_on_cpu']:.2f}"
              f"  gil {row['cores_holding_gil']:.2f}  waiting {row['cores_waiting']:.2f}")  # fmt: skip
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
        on_cpu = py_spy(pid, seconds, folder)
        with_gil = py_spy(pid, seconds, folder, "--gil")
        everyone = py_spy(pid, seconds, folder, "--idle")
        libraries = perf(pid, seconds, folder)
    return {
        "question": "what does the replica spend its time on?",
        "ok_per_s_while_profiled": result["rate_achieved"],
        "groups": table(on_cpu, with_gil, everyone, seconds),
        "threads_cores": {n: round(k / SAMPLES_PER_S / seconds, 3) for n, k in by_thread(on_cpu).most_common(12)},
        "libraries": libraries,
    }


if __name__ == "__main__":
    main()
