"""A model behind the protocol's `infer`: requests of one batch are run together and come apart again.

One stage, `infer`. Requests whose tensors cannot be joined (a model without a batch dimension) run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from serve.backends.base import Model, Tensor
from serve.batching.outcome import Outcome
from serve.batching.runner import Batch
from serve.pipelines.infer.contract import Inferred, InferRequest, InferResponse

STAGES = ("infer",)


class InferFlow:
    """Implements `Flow`. `model_of` is asked once per batch, so a version swapped meanwhile serves the next one."""

    def __init__(self, model_of: Callable[[], Model], labels: Mapping[str, Sequence[str]]) -> None:
        self._model_of = model_of
        self._labels = labels

    def run(self, items: Sequence[InferRequest], batch: Batch) -> Sequence[Outcome[Inferred]]:
        """One answer per request, in order."""
        batch.timings.start()
        model = self._model_of()
        if model.spec.max_batch_size > 0:
            outputs = _run_together(model, items)
        else:
            outputs = [model.infer(item.inputs) for item in items]
        batch.timings.end("infer")
        name, version = model.spec.name, model.spec.version
        return [
            Inferred(item, InferResponse(name, version, out, labels=self._labels))
            for item, out in zip(items, outputs, strict=True)
        ]


def _run_together(model: Model, items: Sequence[InferRequest]) -> list[Mapping[str, Tensor]]:
    if len(items) == 1:
        return [model.infer(items[0].inputs)]
    joined = {name: np.concatenate([item.inputs[name] for item in items]) for name in items[0].inputs}
    bounds = list(accumulate([item.batch_size or 0 for item in items], initial=0))
    outputs = model.infer(joined)
    return [{name: tensor[begin:end] for name, tensor in outputs.items()} for begin, end in pairwise(bounds)]
