from __future__ import annotations

import json

from tritonclient.grpc import model_config_pb2

from serve.backends.base import ModelSpec, TensorSpec
from serve.ingress.wire.oip_models import model_config, model_metadata
from serve.repository.protobuf_json import as_json
from tests.unit.ingress.wire.oip_cases import TREES

SPEC = ModelSpec(
    name="fraud",
    version="1",
    platform="ensemble",
    backend="",
    max_batch_size=0,
    inputs=(TensorSpec("amount", "FP64", (-1, 1)), TensorSpec("note", "BYTES", (-1, 1), is_optional=True)),
    outputs=(TensorSpec("score", "FP32", (-1, 1)),),
    parameters={"budget_ms": "50"},
)


def test_metadata_says_the_batch_dimension_where_there_is_one() -> None:
    assert as_json(model_metadata(TREES, ["1", "3"])) == {
        "name": "trees",
        "versions": ["1", "3"],
        "platform": "fil",
        "inputs": [{"name": "input__0", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "output__0", "datatype": "FP32", "shape": [-1, 4]}],
    }
    assert as_json(model_metadata(SPEC, ["1"]))["inputs"][1] == {"name": "note", "datatype": "BYTES", "shape": [-1, 1]}


def test_a_pipelines_config_is_an_ensemble_of_its_stages() -> None:
    config = as_json(model_config(SPEC, steps=["fetch", "score"]))
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["fetch", "score"]
    assert config["ensemble_scheduling"]["step"][0]["model_version"] == -1
    assert config["platform"] == "ensemble"
    assert config["input"][1]["data_type"] == "TYPE_STRING"
    assert [tensor["optional"] for tensor in config["input"]] == [False, True]
    assert config["parameters"] == {"budget_ms": {"string_value": "50"}}


def test_config_json_has_every_field_that_perf_analyzer_reads() -> None:
    config = as_json(model_config(TREES))
    assert (config["name"], config["platform"], config["backend"], config["max_batch_size"]) == (
        "trees",
        "fil",
        "fil",
        8,
    )
    (tensor,) = config["input"]
    assert {"name", "data_type", "format", "dims", "optional", "is_shape_tensor", "allow_ragged_batch"} <= set(tensor)
    assert (tensor["data_type"], tensor["dims"], tensor["optional"]) == ("TYPE_FP32", [3], False)
    assert config["output"][0]["label_filename"] == ""
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["instance_group"] == []
    # Presence has a meaning for these: they are left out unless the model has them.
    assert not {"dynamic_batching", "sequence_batching", "ensemble_scheduling", "response_cache"} & set(config)


def test_integers_of_64_bits_are_numbers_at_every_depth() -> None:
    config = model_config_pb2.ModelConfig(name="m")
    config.version_policy.specific.versions.extend([1, 3])
    config.dynamic_batching.max_queue_delay_microseconds = 100
    config.dynamic_batching.priority_queue_policy[2].default_timeout_microseconds = 7
    config.input.add(name="x", dims=[2**40, -1]).reshape.shape.extend([5])
    config.model_warmup.add(name="w").inputs["x"].dims.extend([1, 2])
    tree = json.loads(json.dumps(as_json(config)))
    assert tree["version_policy"] == {"specific": {"versions": [1, 3]}}
    assert tree["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert tree["dynamic_batching"]["priority_queue_policy"]["2"]["default_timeout_microseconds"] == 7
    assert tree["input"][0]["dims"] == [2**40, -1]
    assert tree["input"][0]["reshape"] == {"shape": [5]}
    assert tree["model_warmup"][0]["inputs"]["x"]["dims"] == [1, 2]
