"""`python -m benchmarks` lists the benchmarks by their questions; `python -m benchmarks NAME …` runs one.

A benchmark is a module of this folder whose first line asks a question. Called by `make bench`.
"""

from __future__ import annotations

import ast
import runpy
import signal
import sys
from pathlib import Path


def questions() -> dict[str, str]:
    """Name → question of every benchmark, without importing any."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        question = docstring.split("\n\n")[0].replace("\n", " ")
        if "?" in question:
            found[file.stem] = question[: question.index("?") + 1]
    return found


def main() -> None:
    """Exits with 2 for a name that is no benchmark's."""
    benchmarks = questions()
    if len(sys.argv) == 1:
        width = max(map(len, benchmarks))
        for name, question in benchmarks.items():
            print(f"{name:{width}}  {question}")
        print("\nmake bench NAME=fraud runs one; NAME='fraud --quick' in a minute or two, for a look only")
        return
    name = sys.argv.pop(1)
    if name not in benchmarks:
        print(f"benchmark is {name!r}; allowed: {', '.join(benchmarks)}", file=sys.stderr)
        sys.exit(2)
    # Under nohup, or behind "&", SIGINT is ignored; the servers would inherit that, and it is what stops them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
