from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import headroom_client
import pytest
from headroom_client import errors
from headroom_client.errors import HeadroomClientError

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "clients" / "python"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text())


def run(code: str) -> str:
    paths = f"import sys; sys.path[:0] = [{str(CLIENT)!r}, {str(ROOT)!r}]; "
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()


def test_importing_the_client_brings_in_nothing_of_the_server_and_nothing_heavy() -> None:
    heavy = {"ray", "torch", "numpy", "serve", "kernels", "protos", "pandas", "pydantic", "tritonclient"}
    loaded = run("import headroom_client; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "headroom_client" in loaded.split()
    assert not heavy & set(loaded.split())


@pytest.mark.parametrize(
    "order",
    [
        ("headroom_client._proto.fraud_pb2", "protos.headroom.fraud.v1.fraud_pb2"),
        ("protos.headroom.fraud.v1.fraud_pb2", "headroom_client._proto.fraud_pb2"),
    ],
)
def test_client_and_server_fit_into_one_process_in_either_order(order: tuple[str, str]) -> None:
    first, second = order
    assert run(f"import {first} as a, {second} as b; print(a.DESCRIPTOR is b.DESCRIPTOR)") == "True"


def test_every_package_is_part_of_the_distribution() -> None:
    packages = {
        ".".join(path.parent.relative_to(CLIENT).parts) for path in CLIENT.glob("headroom_client/**/__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages
    assert (CLIENT / "headroom_client" / "py.typed").exists()


def test_the_dependencies_are_lower_bounds_and_the_one_of_protobuf_fits_the_generated_code() -> None:
    bounds = dict(dependency.split(">=") for dependency in PROJECT["project"]["dependencies"])
    assert bounds.keys() == {"httpx", "grpcio", "protobuf"}
    generated = (CLIENT / "headroom_client" / "_proto" / "fraud_pb2.py").read_text()
    assert f"# Protobuf Python Version: {bounds['protobuf']}\n" in generated


def test_every_error_is_exported() -> None:
    names = {cls.__name__ for cls in (HeadroomClientError, *HeadroomClientError.__subclasses__())}
    assert names <= set(headroom_client.__all__)
    assert all(getattr(headroom_client, name) is getattr(errors, name) for name in names)
