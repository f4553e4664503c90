"""Regenerates the gRPC code from `protos/**/*.proto`, which is committed so that nobody needs a compiler.

In: the .proto files. Out: `*_pb2.py`, `*_pb2.pyi`, `*_pb2_grpc.py` beside each of them for the server, and copies of
the message modules in the client's package. The copies' code is byte-identical, so both fit into one process: protobuf
takes an equal descriptor twice. Called by hand, and by CI with `--check`, which writes nothing and exits 1 naming every
file that differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT_FOLDER = Path("clients/python/headroom_client/_proto")
SERVER_PATTERN = "protos/**/*_pb2*.py*"
STUB_HEADER = b'# mypy: disable-error-code="type-arg"\n'
"""protoc writes a bare `Mapping` into the stubs, which mypy's strict mode refuses in a package that it checks."""
CLIENT_PATTERN = f"{CLIENT_FOLDER.as_posix()}/*_pb2*.py*"

Files = dict[Path, bytes]


def compile_protos(root: Path, folder: Path) -> None:
    """Runs protoc on every .proto below `root`/protos, writing below `folder`; raises SystemExit where one is wrong."""
    from grpc_tools import protoc

    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    protos = sorted(str(path.relative_to(root)) for path in root.glob("protos/**/*.proto"))
    if protoc.main(["protoc", f"-I{root}", *outputs, *protos]) != 0:
        raise SystemExit("protoc refused a .proto file; its message is above")


def server_files(folder: Path) -> Files:
    """What protoc wrote below `folder`, by path relative to the project's root."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob(SERVER_PATTERN))}


def client_files(server: Files) -> Files:
    """The message modules, flat in the client's package; raises SystemExit where two would have the same name."""
    copies: Files = {}
    for path, content in server.items():
        if path.stem.endswith("_pb2"):
            if CLIENT_FOLDER / path.name in copies:
                raise SystemExit(f"two .proto files generate {path.name}; the client's package is flat, so rename one")
            copies[CLIENT_FOLDER / path.name] = STUB_HEADER + content if path.suffix == ".pyi" else content
    return copies


def generated(root: Path) -> Files:
    """Every generated file with its content, by path relative to `root`."""
    with tempfile.TemporaryDirectory() as folder:
        compile_protos(root, Path(folder))
        server = server_files(Path(folder))
    return server | client_files(server)


def committed(root: Path) -> Files:
    """The generated files that lie in the tree, one left behind by a removed .proto included."""
    paths = {path for pattern in (SERVER_PATTERN, CLIENT_PATTERN) for path in root.glob(pattern)}
    return {path.relative_to(root): path.read_bytes() for path in paths}


def differing(wanted: Files, present: Files) -> list[Path]:
    """Paths that are missing, left over or of another content, sorted."""
    return sorted(path for path in wanted.keys() | present.keys() if wanted.get(path) != present.get(path))


def write(root: Path, wanted: Files, paths: Iterable[Path]) -> None:
    """Brings `paths` to the wanted state; one that is no longer wanted is removed."""
    for path in paths:
        if path in wanted:
            (root / path).write_bytes(wanted[path])
        else:
            (root / path).unlink()


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Returns the exit status: 1 when `--check` found a difference, else 0. Prints one path a line."""
    parser = argparse.ArgumentParser(description="Regenerate the gRPC code from protos/**/*.proto.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 naming the files that differ")
    is_check = parser.parse_args(arguments).check
    wanted = generated(root)
    paths = differing(wanted, committed(root))
    if not is_check:
        write(root, wanted, paths)
    for path in paths:
        print(f"differs: {path}" if is_check else f"wrote: {path}")
    return int(is_check and bool(paths))


if __name__ == "__main__":
    sys.exit(main())
