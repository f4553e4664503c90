"""A model behind the protocol's `infer`: requests of one batch are run together and come apart again.

One stage, `infer`. Requests whose tensors cannot be joined (a model without a batch dimension) run one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from serve.backends.base import Model, Tensor
from serve.batching.outcome import Outcome
from serve.batching.runner import Batch
from serve.pipelines.infer.contract import Inferred, InferRequest, InferResponse

STAGES = ("infer",)


class InferFlow:
    """Implements `Flow`."""

    def __init__(self, model: Model, labels: Mapping[str, Sequence[str]]) -> None:
        self._model = model
        self._labels = labels

    def run(self, items: Sequence[InferRequest], batch: Batch) -> Sequence[Outcome[Inferred]]:
        """One answer per request, in order."""
        batch.timings.start()
        model = self._model
        if model.spec.max_batch_size > 0:
            outputs = _run_together(model, items, batch.runs)
        else:
            outputs = [model.infer(item.inputs) for item in items]
            batch.runs.extend([1] * len(items))
        batch.timings.end("infer")
        name, version = model.spec.name, model.spec.version
        return [
            Inferred(item, InferResponse(name, version, out, labels=self._labels))
            for item, out in zip(items, outputs, strict=True)
        ]


def _run_together(model: Model, items: Sequence[InferRequest], runs: list[int]) -> list[Mapping[str, Tensor]]:
    outputs: dict[int, Mapping[str, Tensor]] = {}
    for group in _joinable(items, model.spec.max_batch_size):
        runs.append(sum([items[i].batch_size or 0 for i in group]))
        for i, out in zip(group, _run_group(model, [items[i] for i in group]), strict=True):
            outputs[i] = out
    return [outputs[i] for i in range(len(items))]


def _joinable(items: Sequence[InferRequest], max_rows: int) -> list[list[int]]:
    """Indices of requests whose tensors agree in all but the batch dimension and together fit the model."""
    groups: list[list[int]] = []
    latest: dict[object, tuple[list[int], int]] = {}
    for i, item in enumerate(items):
        shape = _shape(item)
        group, rows = latest.get(shape, ([], max_rows))
        rows += item.batch_size or 0
        if rows > max_rows:
            group, rows = [], item.batch_size or 0
            groups.append(group)
        group.append(i)
        latest[shape] = group, rows
    return groups


def _shape(item: InferRequest) -> object:
    """Equal where tensors can be joined."""
    if len(item.inputs) == 1:
        ((name, tensor),) = item.inputs.items()
        return name, tensor.shape[1:]
    return tuple((name, tensor.shape[1:]) for name, tensor in sorted(item.inputs.items()))


def _run_group(model: Model, items: Sequence[InferRequest]) -> list[Mapping[str, Tensor]]:
    if len(items) == 1:
        return [model.infer(items[0].inputs)]
    joined = {name: np.concatenate([item.inputs[name] for item in items]) for name in items[0].inputs}
    bounds = list(accumulate([item.batch_size or 0 for item in items], initial=0))
    outputs = model.infer(joined)
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        return [{name: tensor[begin:end]} for begin, end in pairwise(bounds)]
    return [{name: tensor[begin:end] for name, tensor in outputs.items()} for begin, end in pairwise(bounds)]
