from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from serve.backends.base import TensorSpec
from serve.errors import InvalidInput
from serve.repository.config import VersionPlan, read_config, read_labels, spec_of, version_plan

GOOD = """\
name: "trees"
backend: "fil"
max_batch_size: 32
input [ { name: "input__0" data_type: TYPE_FP32 dims: [ 30 ] } ]
output [
  { name: "output__0" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" },
  { name: "note" data_type: TYPE_STRING dims: [ -1, 1 ] }
]
parameters { key: "model_type" value { string_value: "xgboost" } }
"""


def folder(root: Path, text: str | bytes, name: str = "trees") -> Path:
    model_dir = root / name
    model_dir.mkdir()
    (model_dir / "config.pbtxt").write_bytes(text.encode() if isinstance(text, str) else text)
    return model_dir


def test_a_configuration_becomes_a_specification(tmp_path: Path) -> None:
    spec = spec_of(read_config(folder(tmp_path, GOOD)), "3")
    assert (spec.name, spec.version, spec.backend, spec.platform, spec.max_batch_size) == (
        "trees",
        "3",
        "fil",
        "fil",
        32,
    )
    assert spec.inputs == (TensorSpec("input__0", "FP32", (30,)),)
    assert spec.outputs == (TensorSpec("output__0", "FP32", (2,)), TensorSpec("note", "BYTES", (-1, 1)))
    assert spec.parameters == {"model_type": "xgboost"}


def test_an_input_may_be_optional(tmp_path: Path) -> None:
    text = GOOD.replace("dims: [ 30 ]", "dims: [ 30 ] optional: true")
    assert spec_of(read_config(folder(tmp_path, text)), "1").inputs[0].is_optional


def test_what_triton_fills_in_is_filled_in(tmp_path: Path) -> None:
    config = read_config(folder(tmp_path, 'platform: "onnxruntime_onnx"', name="net"))
    assert (config.name, config.backend, config.max_batch_size) == ("net", "onnxruntime", 0)
    assert config.version_policy.latest.num_versions == 1
    assert [(group.name, group.count) for group in config.instance_group] == [("net_0", 1)]
    assert not config.HasField("dynamic_batching")
    assert spec_of(config, "1").platform == "onnxruntime_onnx"


def test_what_the_file_says_is_kept(tmp_path: Path) -> None:
    text = (
        'backend: "fil" instance_group [ { count: 4 kind: KIND_CPU } ] dynamic_batching { } version_policy { all { } }'
    )
    config = read_config(folder(tmp_path, text))
    assert [group.count for group in config.instance_group] == [4]
    assert config.HasField("dynamic_batching")
    assert config.version_policy.HasField("all")


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("max_batch_size: 32", "max_batch: 32", 3, 'no field named "max_batch"'),
        ("max_batch_size: 32", "max_batch_size: many", 3, "many"),
        ("max_batch_size: 32", "max_batch_size: -1", 3, r"max_batch_size is -1; allowed 0"),
        ('name: "trees"', 'name: "bushes"', 1, "name is 'bushes'; allowed 'trees'"),
        ('backend: "fil"', 'platform: "caffe2_netdef"', 2, "platform is 'caffe2_netdef'; allowed a backend"),
        ("dims: [ 30 ]", "", 4, r"input\[0\].dims is \[\]; allowed sizes of 1 and up"),
        ("dims: [ 30 ]", "dims: [ 0 ]", 4, r"input\[0\].dims is \[0\]"),
        ("dims: [ -1, 1 ]", "dims: [ -2 ]", 7, r"output\[1\].dims is \[-2\]"),
        ("data_type: TYPE_STRING", "", 7, r"output\[1\].data_type is not set"),
        ('name: "note"', "", 5, r"output\[1\].name is ''"),
        ('name: "note"', 'name: "output__0"', 6, r"output\[1\].name is 'output__0'; allowed a name of its own"),
        ("dims: [ 30 ]", "dims: [ 30 ] reshape { shape: [ 5, 6 ] }", 4, r"input\[0\].reshape is set"),
        ("}\n]", "}", 8, "Expected"),
    ],
)
def test_an_error_names_file_line_and_what_is_allowed(
    tmp_path: Path, before: str, after: str, line: int, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        read_config(folder(tmp_path, GOOD.replace(before, after, 1)))
    assert caught.value.message.startswith(f"trees/config.pbtxt:{line}: ")


def test_a_model_without_backend_and_platform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="backend is not set"):
        read_config(folder(tmp_path, ""))


def test_a_damaged_file_is_refused_or_read(tmp_path: Path) -> None:
    model_dir = folder(tmp_path, GOOD)
    num_refused = 0
    for seed in range(500):
        rng = Random(seed)
        text = bytearray(GOOD.encode())
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text))
            text[start : start + rng.randint(0, 5)] = rng.choice(
                [b"{", b"}", b'"', b"[", b"-", b"9" * 30, b"\xff", b""]
            )
        (model_dir / "config.pbtxt").write_bytes(text)
        try:
            config = read_config(model_dir)
        except InvalidInput:
            num_refused += 1
        else:
            assert spec_of(config, "1").name == "trees"
    assert 0 < num_refused < 500


@pytest.mark.parametrize(("text", "reason"), [(b"\xff", "not UTF-8"), (None, "No such file")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: bytes | None, reason: str) -> None:
    model_dir = folder(tmp_path, text or b"")
    if text is None:
        (model_dir / "config.pbtxt").unlink()
    with pytest.raises(InvalidInput, match=rf"trees/config.pbtxt: cannot be read: .*{reason}"):
        read_config(model_dir)


@pytest.mark.parametrize(
    ("policy", "available", "plan"),
    [
        ("", [1, 10, 2], VersionPlan((10, 2, 1), 1)),
        ("version_policy { latest { num_versions: 2 } }", [1, 10, 2], VersionPlan((10, 2, 1), 2)),
        ("version_policy { latest { } }", [1], VersionPlan((1,), 1)),
        ("version_policy { all { } }", [1, 3, 2], VersionPlan((3, 2, 1), 3)),
        ("version_policy { specific { versions: [ 1, 7, 1 ] } }", [1, 2], VersionPlan((7, 1), 2)),
        ("version_policy { all { } }", [], VersionPlan((), 0)),
    ],
)
def test_the_version_policy_orders_versions(
    tmp_path: Path, policy: str, available: list[int], plan: VersionPlan
) -> None:
    assert version_plan(read_config(folder(tmp_path, f'backend: "fil" {policy}')), available) == plan


def test_labels_are_lines_of_a_file_in_the_models_folder(tmp_path: Path) -> None:
    model_dir = folder(tmp_path, GOOD)
    (model_dir / "labels.txt").write_text("ok\nfraud\n")
    assert read_labels(read_config(model_dir), model_dir) == {"output__0": ("ok", "fraud")}


@pytest.mark.parametrize("filename", ["../secret.txt", "missing.txt", "/etc/hostname"])
def test_labels_from_elsewhere_are_refused(tmp_path: Path, filename: str) -> None:
    (tmp_path / "secret.txt").write_text("x")
    model_dir = folder(tmp_path, GOOD.replace("labels.txt", filename))
    with pytest.raises(InvalidInput, match="label_filename is"):
        read_labels(read_config(model_dir), model_dir)
