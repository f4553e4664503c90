"""Infer: requests of one batch run together and come apart again, whatever the model or the shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.batching.runner import Batch
from serve.budgets.timings import Timings
from serve.pipelines.infer.contract import Inferred, InferRequest
from serve.pipelines.infer.flow import STAGES, InferFlow


class DoublingModel:
    """Doubles its one input. Refuses batches that its specification does not allow, as an engine would."""

    def __init__(self, max_batch_size: int = 8, version: str = "1") -> None:
        spec = (TensorSpec("x", "FP32", (-1,)),)
        self.spec = ModelSpec("double", version, "p", "b", max_batch_size, spec, (TensorSpec("y", "FP32", (-1,)),))
        self.batches: list[tuple[int, ...]] = []

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = inputs["x"]
        if self.spec.max_batch_size and len(x) > self.spec.max_batch_size:
            raise AssertionError(f"{len(x)} rows; allowed {self.spec.max_batch_size}")
        self.batches.append(x.shape)
        return {"y": x * 2}

    def close(self) -> None: ...


def request(rows: int, width: int = 2, first: float = 0.0) -> InferRequest:
    x = np.arange(rows * width, dtype=np.float32).reshape(rows, width) + first
    return InferRequest({"x": x}, (), batch_size=rows)


def run(model: DoublingModel, *requests: InferRequest) -> list[Inferred]:
    batch = Batch(0, "", 2**62, Timings())
    answers = list(InferFlow(model, {"y": ["a"]}).run(requests, batch))
    assert tuple(batch.timings.stages_ns) == STAGES
    return answers


def assert_answers(answers: list[Inferred], requests: list[InferRequest]) -> None:
    assert [answer.request for answer in answers] == requests
    for answer, one in zip(answers, requests, strict=True):
        np.testing.assert_array_equal(answer.response.outputs["y"], one.inputs["x"] * 2)


def test_requests_of_one_batch_run_in_one_call_and_come_apart_in_order():
    model = DoublingModel()
    requests = [request(1), request(3, first=10), request(2, first=100)]
    assert_answers(run(model, *requests), requests)
    assert model.batches == [(6, 2)]


def test_one_request_runs_as_it_is():
    model = DoublingModel()
    assert_answers(run(model, one := request(3)), [one])
    assert model.batches == [(3, 2)]


def test_a_model_without_a_batch_dimension_runs_requests_one_by_one():
    model = DoublingModel(max_batch_size=0)
    requests = [InferRequest({"x": np.ones(3, np.float32) * i}, ()) for i in range(3)]
    assert_answers(run(model, *requests), requests)
    assert model.batches == [(3,), (3,), (3,)]


def test_requests_together_are_never_more_rows_than_the_model_takes():
    """Each request was checked against max_batch_size alone; the runner counts a request as one item."""
    model = DoublingModel(max_batch_size=8)
    requests = [request(8, first=i) for i in range(5)] + [request(1), request(7)]
    assert_answers(run(model, *requests), requests)
    assert max(rows for rows, _ in model.batches) <= 8


def test_requests_of_different_widths_are_answered_without_failing_the_batch():
    """A dimension of -1 may differ between requests: they cannot be joined, and that is nobody's error."""
    requests = [request(1, width=2), request(1, width=3), request(2, width=2)]
    assert_answers(run(DoublingModel(), *requests), requests)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=8))
def test_any_mix_of_requests_gets_its_own_answers(shapes):
    requests = [request(rows, width, first=i) for i, (rows, width) in enumerate(shapes)]
    assert_answers(run(DoublingModel(), *requests), requests)


def test_the_answer_names_the_version_that_gave_it_and_its_labels():
    [answer] = run(DoublingModel(version="7"), request(1))
    assert (answer.response.model_name, answer.response.model_version) == ("double", "7")
    assert answer.response.labels == {"y": ["a"]}


def test_a_model_that_fails_fails_the_call_so_that_the_runner_can_find_who_is_to_blame():
    with pytest.raises(AssertionError):
        run(DoublingModel(max_batch_size=2), request(3))
