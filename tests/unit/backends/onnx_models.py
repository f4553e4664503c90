"""Small ONNX models, made when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

Dims = Sequence[int | str | None]


def tensor(name: str, kind: int, dims: Dims) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def save(file: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)


def save_sum(file: Path, dims: Dims = ("batch", 2), kind: int = TensorProto.FLOAT) -> None:
    """`sum` of `a` and `b`, and their `difference`."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    names = ("a", "b"), ("sum", "difference")
    save(file, nodes, *([tensor(name, kind, dims) for name in some] for some in names))


def save_identity(file: Path, kind: int, dims: Dims = ("batch", "n")) -> None:
    save(file, [helper.make_node("Identity", ["x"], ["y"])], [tensor("x", kind, dims)], [tensor("y", kind, dims)])
