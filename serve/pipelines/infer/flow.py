"""A model behind the protocol's `infer`: requests of one batch are run together and come apart again.

One stage, `infer`. Requests whose tensors cannot be joined (a model without a batch dimension) run one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from serve.backends.base import Model, RequestModel, Tensor
from serve.batching.outcome import Outcome
from serve.batching.runner import Batch
from serve.errors import HeadroomError
from serve.pipelines.infer.contract import Inferred, InferRequest, InferResponse

STAGES = ("infer",)


class InferFlow:
    """Implements `Flow`."""

    def __init__(self, model: Model, labels: Mapping[str, Sequence[str]]) -> None:
        self._model = model
        self._labels = labels
        self._by_requests = model if isinstance(model, RequestModel) else None

    def run(self, items: Sequence[InferRequest], batch: Batch) -> Sequence[Outcome[Inferred]]:
        """One answer per request, in order."""
        batch.timings.start()
        model = self._model
        if self._by_requests is not None:
            return self._run_requests(self._by_requests, items, batch)
        if model.spec.max_batch_size > 0:
            outputs = _run_together(model, items, batch.runs)
        else:
            outputs = [model.infer(item.inputs) for item in items]
            batch.runs.extend([1] * len(items))
        batch.timings.end("infer")
        return [self._inferred(item, out) for item, out in zip(items, outputs, strict=True)]

    def _run_requests(
        self, model: RequestModel, items: Sequence[InferRequest], batch: Batch
    ) -> Sequence[Outcome[Inferred]]:
        answers: list[Mapping[str, Tensor] | HeadroomError] = []
        for group in _fitting(items, model.spec.max_batch_size):
            batch.runs.append(sum([item.batch_size or 1 for item in group]))
            answers += model.infer_requests(group)
        batch.timings.end("infer")
        return [
            answer if isinstance(answer, HeadroomError) else self._inferred(item, answer)
            for item, answer in zip(items, answers, strict=True)
        ]

    def _inferred(self, item: InferRequest, outputs: Mapping[str, Tensor]) -> Inferred:
        spec = self._model.spec
        return Inferred(item, InferResponse(spec.name, spec.version, outputs, labels=self._labels))


def _fitting(items: Sequence[InferRequest], max_rows: int) -> list[list[InferRequest]]:
    """In their order, as many at once as fit the model; without a batch dimension each is one."""
    groups: list[list[InferRequest]] = []
    room = 0
    for item in items:
        rows = item.batch_size or 1
        if rows > room:
            groups.append([])
            room = max_rows or 1
        groups[-1].append(item)
        room -= rows
    return groups


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
