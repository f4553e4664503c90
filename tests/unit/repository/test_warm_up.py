"""`model_warmup`: what a version is asked before clients ask it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serve.errors import InvalidInput
from serve.repository.repository import Repository
from serve.repository.warm_up import warm_up_requests
from tests.unit.repository.test_repository import CONFIG, EchoLoader, put


def sample(data: str, *, dims: str = "2", data_type: str = "TYPE_FP32", more: str = "", name: str = "x") -> str:
    value = f"{{ data_type: {data_type} dims: [ {dims} ] {data} }}"
    return f'model_warmup {{ name: "s" {more} inputs {{ key: "{name}" value {value} }} }} '


def requests(text: str, folder: Path = Path("/none")) -> list[dict[str, np.ndarray]]:
    return list(warm_up_requests(text_format.Parse(f"max_batch_size: 4 {text}", ModelConfig()), folder))


def test_zeros_random_numbers_and_files_of_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    np.array([[1, 2], [3, 4]], np.int32).tofile(tmp_path / "warmup" / "raw")
    text = sample("zero_data: true") + sample("random_data: true", more="count: 2")
    text += sample('input_data_file: "raw"', data_type="TYPE_INT32", more="batch_size: 2")
    zeros, random, again, file = (one["x"] for one in requests(text, tmp_path))
    np.testing.assert_array_equal(zeros, np.zeros((1, 2), np.float32))
    assert random.dtype == np.float32
    assert 0 < random.min() < random.max() < 1
    assert again is random
    np.testing.assert_array_equal(file, np.array([[1, 2], [3, 4]], np.int32))


@pytest.mark.parametrize("data_type", ["BOOL", "UINT8", "INT64", "FP16", "BF16", "FP64", "STRING"])
def test_every_data_type_can_be_asked_with(data_type: str) -> None:
    (one,) = requests(sample("zero_data: true", data_type=f"TYPE_{data_type}", dims="3, 1"))
    assert one["x"].shape == (1, 3, 1)
    assert not one["x"].any()


def test_without_a_batch_dimension_the_shape_is_the_samples() -> None:
    config = text_format.Parse(sample("zero_data: true", dims="5"), ModelConfig())
    (one,) = warm_up_requests(config, Path("/none"))
    assert one["x"].shape == (5,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (sample("zero_data: true", more="batch_size: 5"), "'s'.batch_size is 5; allowed at most 4"),
        (
            sample("zero_data: true", dims="-1"),
            r"inputs\['x'\] is FP32 \[-1\]; allowed a data type, and sizes of 1 and up",
        ),
        (sample("zero_data: true", data_type="TYPE_INVALID"), "is INVALID"),
        (sample("zero_data: true", dims="100000, 100000"), "takes more than"),
        (sample('input_data_file: "none"'), "input_data_file 'none' cannot be read: No such file"),
        (sample('input_data_file: "../secret"'), "leads out of the folder 'warmup'"),
        (sample('input_data_file: "short"'), r"has 3 bytes; \[1, 2\] of float32 are 8"),
        (sample("zero_data: true", more="count: 1001"), "asks for 1001 requests; allowed 1000"),
    ],
)
def test_samples_that_are_wrong_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"abc")
    with pytest.raises(InvalidInput, match=said):
        requests(text, tmp_path)


def test_a_version_that_cannot_answer_them_is_not_served(tmp_path: Path) -> None:
    put(tmp_path, "good", CONFIG + sample("zero_data: true", dims="1"), v1="a")
    put(tmp_path, "bad", CONFIG + sample("zero_data: true", dims="1", name="other"), v1="a")
    loader = EchoLoader()
    repository = Repository(tmp_path, {"echo": loader})
    repository.load_all(lambda line: None)
    assert repository.ready() == [("good", "1")]
    assert "KeyError" in repository.load("bad").reason
    assert [made.is_closed for made in loader.made] == [True, False, True]
