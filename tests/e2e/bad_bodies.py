"""Request bodies with something wrong with them, as hypothesis strategies: the same ones in every run."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as oip

NUM_FEATURES = 30
REQUIRED = ("transaction_id", "customer_id", "terminal_id", "amount", "timestamp")
TENSOR = struct.pack(f"<{NUM_FEATURES}f", *range(NUM_FEATURES))


def good_transaction() -> dict[str, Any]:
    """Always the same; what is refused is never stored."""
    return {
        "transaction_id": "wrong-1",
        "customer_id": "wrong-2",
        "terminal_id": "wrong-3",
        "amount": 42.5,
        "timestamp": 1_533_724_260.0,
        "currency": "EUR",
        "latitude": 48.1,
    }


def good_infer() -> dict[str, Any]:
    data = [0.5] * NUM_FEATURES
    return {"inputs": [{"name": "input__0", "shape": [1, NUM_FEATURES], "datatype": "FP32", "data": data}]}


def as_body(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_texts = st.sampled_from(["", "x" * 97, "x" * 5000, [], {}]) | numbers | st.none() | st.booleans()
_not_numbers = st.sampled_from(["1", "", None, True, [], {}])
_below_zero = st.floats(max_value=-1e-9, allow_infinity=False)
_no_dates = ["now", "2018-13-01T00:00:00Z", "2018-08-08"]
_far_dates = ["1999-12-31T23:59:59Z", "1969-12-31T23:59:59Z", "2999-01-01T00:00:00Z"]
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "transaction_id": _texts,
    "customer_id": _texts,
    "terminal_id": _texts,
    "amount": _not_numbers | _below_zero | st.floats(min_value=1.001e9, allow_infinity=False),
    "timestamp": _not_numbers
    | _below_zero
    | st.sampled_from(_no_dates + _far_dates)
    | st.floats(min_value=4e10, allow_infinity=False),
    "currency": st.sampled_from(["eur", "EURO", "", 978, ["EUR"]]),
    "merchant_category": st.sampled_from(["", "x" * 33, 5411, {}]),
    "channel": st.sampled_from(["", "x" * 33, False]),
    "latitude": st.sampled_from([90.001, -91, "48", True, []]),
    "longitude": st.sampled_from([180.001, -181, "11", True, []]),
}


@st.composite
def wrong_transactions(draw: st.DrawFn) -> Any:
    """A good transaction with one thing wrong with it, or something else altogether."""
    made = good_transaction()
    kind = draw(st.sampled_from(["field", "field", "missing", "unknown", "other"]))
    if kind == "other":
        return draw(values.filter(lambda value: not isinstance(value, dict) or not value.keys() >= set(REQUIRED)))
    if kind == "missing":
        del made[draw(st.sampled_from(REQUIRED))]
    elif kind == "unknown":
        made[draw(st.text(max_size=12).filter(lambda name: name not in WRONG))] = draw(values)
    else:
        field = draw(st.sampled_from(sorted(WRONG)))
        made[field] = draw(WRONG[field])
    return made


@st.composite
def wrong_lists(draw: st.DrawFn) -> Any:
    """What is no list of transactions."""
    anything = draw(values.filter(lambda value: not isinstance(value, list) or not value))
    return {"transactions": anything} if draw(st.booleans()) else anything


@st.composite
def wrong_infers(draw: st.DrawFn) -> Any:
    """An infer request with one thing wrong with it."""
    made = good_infer()
    tensor: dict[str, Any] = made["inputs"][0]
    kind = draw(st.sampled_from(["shape", "datatype", "name", "data", "missing", "inputs", "timeout", "outputs"]))
    if kind == "shape":
        dims = st.lists(st.integers(), max_size=3).filter(lambda dims: dims != tensor["shape"])
        tensor["shape"] = draw(dims | scalars)
    elif kind in ("name", "datatype"):
        tensor[kind] = draw(scalars.filter(lambda value: value != tensor[kind]))
    elif kind == "data":
        tensor["data"] = draw(values)
    elif kind == "missing":
        del tensor[draw(st.sampled_from(sorted(tensor)))]
    elif kind == "inputs":
        made["inputs"] = draw(values)
    elif kind == "timeout":
        made["parameters"] = {"timeout": draw(st.sampled_from([-1, "1", [], {}, True, None]))}
    else:
        made["outputs"] = [{"name": draw(scalars.filter(lambda value: value != "output__0"))}]
    return made


@st.composite
def wrong_bodies(draw: st.DrawFn, wrong: st.SearchStrategy[Any], good: dict[str, Any]) -> bytes:
    """JSON with something wrong in it, a part of a document, which is never one itself, or no JSON at all."""
    kind = draw(st.sampled_from(["wrong", "wrong", "part", "bytes"]))
    if kind == "wrong":
        return as_body(draw(wrong))
    whole = as_body(good)
    if kind == "part":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    return draw(st.binary(max_size=200).filter(lambda body: not is_json(body)))


@st.composite
def wrong_binary_infers(draw: st.DrawFn) -> tuple[bytes, str]:
    """JSON and a tensor behind each other, and a header length; the length, the tensor's size, or both are wrong."""
    size = draw(st.sampled_from([len(TENSOR), 0, 1, len(TENSOR) + 4, 1 << 40]))
    tensor = {"name": "input__0", "shape": [1, NUM_FEATURES], "datatype": "FP32"}
    head = as_body({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]})
    right = str(len(head))
    random_length = st.integers(1, 2 * len(head)).filter(lambda length: length != len(head)).map(str)
    length = draw(st.just(right) | random_length | st.sampled_from(["-1", "", "ten", "1e3", "9" * 30, "+5"]))
    sent = TENSOR[: draw(st.integers(0, len(TENSOR)))]
    if size == len(TENSOR) == len(sent) and length == right:
        sent = sent[:-1]
    return head + sent, length


@st.composite
def wrong_messages(draw: st.DrawFn) -> bytes:
    """A ModelInferRequest with one thing wrong with it."""
    message = oip.ModelInferRequest(model_name="creditcard")
    tensor = message.inputs.add(name="input__0", datatype="FP32", shape=[1, NUM_FEATURES])
    message.raw_input_contents.append(np.zeros(NUM_FEATURES, np.float32).tobytes())
    text = st.text(min_size=1, max_size=20).filter(lambda text: not text.isdigit())
    parts = ["model", "version", "name", "datatype", "shape", "size", "number", "output", "timeout"]
    kind = draw(st.sampled_from(parts))
    if kind == "model":
        message.model_name = draw(text)
    elif kind == "version":
        message.model_version = draw(text)
    elif kind in ("name", "datatype"):
        setattr(tensor, kind, draw(text))
    elif kind == "shape":
        dims = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).filter(lambda dims: dims != [1, NUM_FEATURES])
        tensor.shape[:] = draw(dims)
    elif kind == "size":
        message.raw_input_contents[0] = draw(st.binary(max_size=4 * NUM_FEATURES - 1))
    elif kind == "number":
        message.raw_input_contents.extend([b""] * draw(st.integers(1, 9)))
    elif kind == "output":
        message.outputs.add(name=draw(text))
    else:
        message.parameters["timeout"].string_param = draw(text)
    return message.SerializeToString()
