"""Trees as machine code: C sources in, the address of their `predict` function out.

Enters: the sources that `serve.backends.tree_import` wrote. Leaves: a shared library, and it opened. Called by
`serve.backends.trees`. Needs a C compiler; `find_compiler` says whether there is one.

Optimisation is `-O1`: for 300 trees of depth 6 it takes 13 s of one core where `-O2` takes 25 s, and the code, which
is nothing but comparisons and branches, is no slower (smaller by a fifth; random rows: 13 against 16 µs a row).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from serve.errors import DependencyFailed

FLAGS = ("-O1", "-march=native", "-fPIC", "-std=c99")
LIBRARY = "trees.so"
_TIMEOUT_S = 600
_TYPES = {"float32": ctypes.sizeof(ctypes.c_float), "float64": ctypes.sizeof(ctypes.c_double)}


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler on this machine: the path it was found at, and what it says its version is."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class TreeLibrary:
    """An open library. It stays mapped for the life of the process: a call may be running when its model is closed."""

    predict_address: int
    num_features: int
    num_sums: int
    entry_bytes: int
    library: ctypes.CDLL


def find_compiler() -> Compiler | None:
    """gcc, cc or clang from PATH, the first that answers; None without one."""
    for name in ("gcc", "cc", "clang"):
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
        if answer.returncode == 0 and answer.stdout:
            return Compiler(path, answer.stdout.splitlines()[0])
    return None


def build_library(sources: Path, folder: Path, compiler: Compiler, progress: Callable[[str], None]) -> None:
    """Compiles every .c file of `sources` on all cores into `folder`; raises DependencyFailed saying why not."""
    files = sorted(sources.glob("*.c"))
    objects = [folder / f"{file.stem}.o" for file in files]
    compile_one = [compiler.path, *FLAGS, "-c"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        commands = [[*compile_one, str(file), "-o", str(object_)] for file, object_ in zip(files, objects, strict=True)]
        jobs = [pool.submit(_run, command) for command in commands]
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            progress(f"compiling trees: {done} of {len(files)} files")
    _run([compiler.path, "-shared", *map(str, objects), "-lm", "-o", str(folder / LIBRARY)])
    for object_ in objects:
        object_.unlink()


def open_library(folder: Path) -> TreeLibrary:
    """Maps the library that was built in `folder`; raises DependencyFailed when it is not one of ours."""
    path = folder / LIBRARY
    try:
        library = ctypes.CDLL(str(path))
        library.get_threshold_type.restype = library.get_leaf_output_type.restype = ctypes.c_char_p
        entry_bytes = _TYPES[library.get_threshold_type().decode()]
        num_class = (ctypes.c_int32 * library.get_num_target())()
        library.get_num_class(num_class)
        address = ctypes.cast(library.predict, ctypes.c_void_p).value
        is_uniform = _TYPES[library.get_leaf_output_type().decode()] == entry_bytes
    except (OSError, AttributeError, KeyError) as error:
        raise DependencyFailed(f"{path} is not a library of compiled trees: {error}") from None
    if address is None or not is_uniform:
        raise DependencyFailed(f"{path} is not a library of compiled trees: its types differ")
    return TreeLibrary(address, library.get_num_feature(), max(num_class), entry_bytes, library)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DependencyFailed(f"the C compiler did not finish: {error}") from None
    if done.returncode != 0:
        reason = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
        raise DependencyFailed(f"the C compiler refused the trees: {reason}")
