from __future__ import annotations

from pathlib import Path

import pytest

from protos.generate import ROOT, differing, main

PROTO = 'syntax = "proto3";\npackage headroom.toy.v1;\nmessage Ball { string colour = 1; }\n'
SERVER = Path("protos/headroom/toy/v1")
CLIENT = Path("clients/python/headroom_client/_proto")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / CLIENT).mkdir(parents=True)
    (tmp_path / SERVER).mkdir(parents=True)
    (tmp_path / SERVER / "toy.proto").write_text(PROTO)
    return tmp_path


def test_the_committed_code_is_what_the_protos_generate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], ROOT) == 0, capsys.readouterr().out


def test_it_writes_the_servers_modules_and_a_copy_of_the_messages_for_the_client(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], tree) == 0
    assert capsys.readouterr().out.count("wrote: ") == 5
    assert (tree / SERVER / "toy_pb2_grpc.py").exists()
    assert (tree / CLIENT / "toy_pb2.py").read_bytes() == (tree / SERVER / "toy_pb2.py").read_bytes()
    assert (tree / CLIENT / "toy_pb2.pyi").read_text().startswith("# mypy: ")
    assert "protos/headroom/toy/v1/toy.proto" in (tree / CLIENT / "toy_pb2.py").read_text()
    assert main(["--check"], tree) == 0


def test_check_names_what_differs_and_writes_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([], tree)
    (tree / SERVER / "toy_pb2.py").write_text("edited by hand")
    (tree / CLIENT / "toy_pb2.pyi").unlink()
    (tree / SERVER / "gone_pb2.py").write_text("left behind")
    capsys.readouterr()
    assert main(["--check"], tree) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"differs: {CLIENT}/toy_pb2.pyi",
        f"differs: {SERVER}/gone_pb2.py",
        f"differs: {SERVER}/toy_pb2.py",
    ]
    assert (tree / SERVER / "toy_pb2.py").read_text() == "edited by hand"


def test_a_file_that_no_proto_generates_is_removed(tree: Path) -> None:
    (tree / SERVER / "gone_pb2.py").write_text("left behind")
    main([], tree)
    assert not (tree / SERVER / "gone_pb2.py").exists()
    assert main(["--check"], tree) == 0


def test_two_protos_of_one_name_are_refused(tree: Path) -> None:
    (tree / "protos/headroom/toy/v2").mkdir()
    (tree / "protos/headroom/toy/v2/toy.proto").write_text(PROTO.replace("v1", "v2"))
    with pytest.raises(SystemExit, match=r"two \.proto files generate toy_pb2\.py"):
        main([], tree)


def test_a_wrong_proto_stops_it(tree: Path) -> None:
    (tree / SERVER / "toy.proto").write_text("message {")
    with pytest.raises(SystemExit, match="protoc refused"):
        main([], tree)


def test_differing_finds_missing_left_over_and_changed() -> None:
    a, b, c = Path("a"), Path("b"), Path("c")
    assert differing({a: b"1", b: b"2"}, {a: b"1", b: b"3", c: b"4"}) == [b, c]
    assert differing({a: b"1"}, {}) == [a]
