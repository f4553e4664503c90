"""Builds the transport's extension module beside its sources, when they have changed: `python -m kernels.transport.build`.

Needs a C++17 compiler and the headers of nghttp2, OpenSSL and zlib. Without them it says so, in one line, and the server
listens with grpc.aio.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
HEADERS = {"nghttp2/nghttp2.h": "libnghttp2-dev", "openssl/ssl.h": "libssl-dev", "zlib.h": "zlib1g-dev"}
LIBRARIES = ("-lnghttp2", "-lssl", "-lcrypto", "-lz", "-pthread")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-DNDEBUG", "-pthread")


class CannotBuild(Exception):
    """What is missing, and what to install."""


def module_path() -> Path:
    """Where the extension module belongs."""
    return FOLDER / f"_transport{sysconfig.get_config_var('EXT_SUFFIX')}"


def stamp() -> str:
    """Of everything the module is made of."""
    import nanobind  # type: ignore[import-untyped]

    digest = hashlib.sha256(f"{nanobind.__version__} {sys.version} {FLAGS} {LIBRARIES}".encode())
    for source in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.hpp")]):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    """Whether the module was built from these sources."""
    note = _stamp_path()
    return module_path().exists() and note.exists() and note.read_text() == stamp()


def build(extra_flags: tuple[str, ...] = ()) -> Path:
    """Compiles and links, all cores at work; the module appears whole or not at all. Raises CannotBuild."""
    compiler = _compiler()
    _check_headers(compiler)
    import nanobind

    folder = Path(nanobind.source_dir())
    sources = [*sorted(FOLDER.glob("*.cpp")), folder / "nb_combined.cpp"]
    includes = [f"-I{nanobind.include_dir()}", f"-I{folder.parent / 'ext/robin_map/include'}",
                f"-I{sysconfig.get_paths()['include']}", f"-I{FOLDER}"]  # fmt: skip
    flags = [*FLAGS, *extra_flags]
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as work:
        objects = [Path(work) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = zip(sources, objects, strict=True)
            list(pool.map(lambda job: _run([compiler, *flags, *includes, "-c", str(job[0]), "-o", str(job[1])]), jobs))
        linked = Path(work) / module_path().name
        _run([compiler, *flags, "-shared", "-o", str(linked), *map(str, objects), *LIBRARIES])
        os.replace(linked, module_path())
    _stamp_path().write_text(stamp())
    return module_path()


def _stamp_path() -> Path:
    return FOLDER / "_transport.stamp"


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise CannotBuild("no C++ compiler (apt-get install g++)")


def _check_headers(compiler: str) -> None:
    missing = []
    for header, package in HEADERS.items():
        probe = subprocess.run([compiler, "-E", "-x", "c++", "-", "-o", os.devnull], input=f"#include <{header}>\n",
                               text=True, capture_output=True, check=False)  # fmt: skip
        if probe.returncode:
            missing.append(package)
    if missing:
        raise CannotBuild(f"headers are missing (apt-get install {' '.join(missing)})")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"the compiler failed:\n{done.stderr[-4000:]}")


def main() -> None:
    """Builds unless it is built; never fails: there is a listener that needs nothing built."""
    if is_current():
        return
    print("==> compiling the native gRPC transport (once; half a minute)", flush=True)
    try:
        build()
    except CannotBuild as error:
        print(f"==> gRPC will be served by grpc.aio, several times slower: {error}", flush=True)


if __name__ == "__main__":
    main()
