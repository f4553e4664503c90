"""What a model is to a pipeline, wherever it runs.

A backend turns the files of one model version into a `Model`. Flows and the protocol's `infer` see only this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from serve.errors import HeadroomError

Tensor = npt.NDArray[np.generic]
Ask = Callable[[str, str, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Has another model of the repository infer: name, version or "", inputs. Raises HeadroomError."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, OIP datatype (`FP32`, `BYTES`, …) and shape without the batch dimension; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_optional: bool = False
    """Of an input: a request may leave it out."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model's metadata and configuration say."""

    name: str
    version: str
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """What an ensemble says of n rows: probabilities, float32 [n], their log-odds, float64 [n], and its members' scores,
    float32 [n, members].
    """

    probability: npt.NDArray[np.float32]
    log_odds: npt.NDArray[np.float64]
    members: npt.NDArray[np.float32]


class Named(Protocol):
    """An output that a request wants."""

    @property
    def name(self) -> str: ...


class Asked(Protocol):
    """A request as a client sent it, checked."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    @property
    def outputs(self) -> Sequence[Named]: ...

    @property
    def id(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, bool | int | float | str]: ...


class Model(Protocol):
    """A loaded model version. `infer` is thread-safe only where a backend says so; it never mutates its inputs."""

    @property
    def spec(self) -> ModelSpec: ...

    def infer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs one batch: every tensor's first dimension is the batch (when `max_batch_size` > 0)."""
        ...

    def close(self) -> None:
        """Frees what the model holds; `infer` must not be called afterwards."""
        ...


@runtime_checkable
class RequestModel(Model, Protocol):
    """A model that sees requests as they are: they are executed together, and not joined."""

    @property
    def num_instances(self) -> int:
        """How many batches it executes at once."""
        ...

    def infer_requests(self, requests: Sequence[Asked]) -> list[Mapping[str, Tensor] | HeadroomError]:
        """One batch: an answer or an error for each request, in order."""
        ...
