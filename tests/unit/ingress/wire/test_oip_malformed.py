"""Whatever a client sends, the codecs answer with a refusal that names what is wrong, and with no other exception.

Seeded random damage instead of hypothesis: thousands of bodies in a second, and the seed in a failure repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest

from serve.errors import InvalidInput, TooLarge, Unsupported
from serve.ingress.wire import oip_grpc, oip_http
from serve.pipelines.infer.contract import InferRequest
from tests.unit.ingress.wire.oip_cases import model

SPEC = model("FP32", "BYTES", "INT8", "BOOL")
DATATYPES = ["FP32", "BYTES", "INT8", "BOOL"]
NUM_BODIES = 3000

LEAVES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 255, 2**31, 2**63, 2**64, 10**40, 0.5, 1e39, float("nan"), float("-inf")),
    *("", "in0", "in3", "x", "FP32", "BYTES", "out0", "ä", "\ud800", "NaN", "1"),
    *([], {}, [[]], [1], [1, 1, 2], [[1], [2]], [[1], [2, 3]], ["a", "b"], {"name": "in0"}, {"a": [{"b": None}]}),
]
KEYS = [
    *("inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "binary_data_size", "binary_data"),
    *("classification", "shared_memory_region", "timeout", "priority", "binary_data_output", "sequence_id"),
]


def good_tree() -> dict[str, Any]:
    data = [[1.5, 2], ["a", "ä"], [1, -1], [True, False]]
    inputs = [
        {"name": f"in{index}", "shape": [1, 1, 2], "datatype": datatype, "data": data[index]}
        for index, datatype in enumerate(DATATYPES)
    ]
    outputs = [{"name": "out0", "parameters": {"binary_data": True, "classification": 1}}, {"name": "out2"}]
    return {"id": "r", "parameters": {"timeout": 5, "priority": 1}, "inputs": inputs, "outputs": outputs}


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, item in pairs for place in ((tree, key), *places(item))]


def damaged_json(rng: Random) -> tuple[bytes, int | None]:
    tree = good_tree()
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(tree))
        action = rng.choice(["replace", "remove", "add"])
        if action == "remove":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[rng.choice(KEYS)] = rng.choice(LEAVES)
        else:
            container[key] = json.loads(json.dumps(rng.choice(LEAVES)))
    body = json.dumps(tree).encode()
    return body, rng.choice([None, None, None, len(body), 0])


def damaged_bytes(rng: Random) -> tuple[bytes, int | None]:
    raw = [np.float32([1, 2]).tobytes(), b"\x01\x00\x00\x00a\x00\x00\x00\x00", b"\x01\x02", b"\x01\x00"]
    tree = good_tree()
    for entry, tensor in zip(tree["inputs"], raw, strict=True):
        del entry["data"]
        entry["parameters"] = {"binary_data_size": len(tensor)}
    header = json.dumps(tree).encode()
    body = bytearray(b"".join([header, *raw]))
    for _ in range(rng.randint(0, 3)):
        start = rng.randint(0, len(body))
        body[start : start + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    return bytes(body), rng.choice([len(header), len(header), 0, None, rng.randint(-2, len(body) + 2)])


def any_bytes(rng: Random) -> tuple[bytes, int | None]:
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b'"inputs"',
        b"NaN",
        b"Infinity",
        b"1e999",
        b"\\u",
        b"\xff",
        b"-",
    ]
    body = b"".join(rng.choice(pieces) for _ in range(rng.randint(0, 30)))
    return body, rng.choice([None, None, 0, len(body)])


@pytest.mark.parametrize("make", [damaged_json, damaged_bytes, any_bytes])
def test_a_damaged_body_is_refused_or_read(make: Callable[[Random], tuple[bytes, int | None]]) -> None:
    num_refused = 0
    for seed in range(NUM_BODIES):
        body, header_length = make(Random(seed))
        try:
            request = oip_http.decode_infer(body, header_length, SPEC)
        except (InvalidInput, TooLarge, Unsupported) as error:
            num_refused += 1
            error.message.encode()
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r} for {body!r}")
        else:
            assert request.batch_size is not None
    assert num_refused > NUM_BODIES // 2


def test_the_request_that_is_damaged_above_is_a_good_one() -> None:
    assert oip_http.decode_infer(json.dumps(good_tree()).encode(), None, SPEC).id == "r"


def damaged_message(rng: Random) -> ModelInferRequest:
    message = ModelInferRequest(id="r")
    raw = [np.float32([1, 2]).tobytes(), b"\x01\x00\x00\x00a\x00\x00\x00\x00", b"\x01\x02", b"\x01\x00"]
    for index, datatype in enumerate(DATATYPES):
        name = rng.choice([f"in{index}"] * 20 + ["in0", "x", ""])
        kind = rng.choice([datatype] * 20 + ["FP16", "", "FP64", "nonsense"])
        shape = rng.choice([[1, 1, 2]] * 20 + [[], [1, 1], [1, -1, 2], [2**62, 2**62, 2], [-(2**63)] * 3, [1, 0, 2]])
        entry = message.inputs.add(name=name, datatype=kind, shape=shape)
        if rng.random() < 0.2:
            entry.contents.int_contents.extend(rng.choice([[1, 2], [300, -300], []]))
            entry.contents.bytes_contents.extend([b"a", b"\xff"])
            entry.contents.fp32_contents.extend([1, 2])
            entry.contents.bool_contents.extend([True, False])
    if rng.random() < 0.7:
        message.raw_input_contents.extend(rng.choice([item] * 9 + [rng.randbytes(rng.randint(0, 9))]) for item in raw)
    if rng.random() < 0.3:
        kind, value = rng.choice([("int64_param", -1), ("string_param", "a"), ("double_param", 0.5)])
        setattr(message.parameters[rng.choice(KEYS)], kind, value)
    return message


def test_a_damaged_message_is_refused_or_read() -> None:
    num_read = 0
    for seed in range(NUM_BODIES):
        message = damaged_message(Random(seed))
        try:
            request = oip_grpc.decode_infer(message, SPEC)
        except (InvalidInput, TooLarge, Unsupported) as error:
            error.message.encode()
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r} for {message!r}")
        else:
            assert isinstance(request, InferRequest)
            num_read += 1
    assert 0 < num_read < NUM_BODIES
