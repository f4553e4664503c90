"""How far what is seen has moved from what a model was trained on: PSI per feature, PSI and KS of the score.

Takes rows of a batch and the shares of a reference; gives distances. Pure. The population stability index is the sum
over parts of (p - q) ln(p / q), symmetric in the two (Kullback and Leibler's J; Siddiqi 2006, "Credit Risk
Scorecards", calls 0.1 worth a look and 0.25 a shift); the Kolmogorov-Smirnov distance is the largest difference of the
two distribution functions, here at the edges of the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from serve.errors import NotReady

Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_LEAST_SHARE = 1e-4
"""What an empty part counts as: one stray value in a part that was empty is no shift."""


class Parts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distribution: shares below each of the rising `edges` (inclusive), above the last, and of missing values."""

    edges: list[float]
    shares: list[float]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's `reference.json`."""

    features: dict[str, Parts]
    score: Parts


def read_reference(model_dir: Path, features: Sequence[str]) -> Reference:
    """The reference beside a model version, of all `features`; raises NotReady naming the file and what is wrong."""
    path = model_dir / "reference.json"
    try:
        reference = msgspec.json.decode(path.read_bytes(), type=Reference)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise NotReady(f"{path} cannot be read: {error}") from None
    if missing := [name for name in features if name not in reference.features]:
        raise NotReady(f"{path} says nothing of {missing[0]}; train the model anew")
    for name, parts in {**reference.features, "score": reference.score}.items():
        is_rising = all(a < b for a, b in zip(parts.edges, parts.edges[1:], strict=False))
        if not is_rising or len(parts.shares) != len(parts.edges) + 2 or min(parts.shares) < 0:
            raise NotReady(f"{path}: {name} needs rising edges, and two more shares than edges, none below 0")
    return reference


@dataclass(frozen=True, slots=True)
class Distances:
    """PSI by feature name, and of the score; KS of the score. `num_rows` they were taken from."""

    feature_psi: Mapping[str, float]
    score_psi: float
    score_ks: float
    num_rows: int


class Drift:
    """Counts what was seen lately: the last `window_rows`, or up to twice as many."""

    def __init__(self, reference: Reference, features: Sequence[str], window_rows: int = 10_000) -> None:
        self._names = tuple(features)
        self._parts = [*(reference.features[name] for name in features), reference.score]
        self._edges = [np.array(parts.edges, np.float32) for parts in self._parts]
        self._window_rows = window_rows
        self._before, self._counts, self._num_rows = self._zeros(), self._zeros(), 0

    def add(self, rows: Rows, probability: Rows) -> None:
        """Counts `rows`, float32 [n, features], and their scores [n]."""
        columns = zip([*rows.T, probability], self._edges, strict=True)
        found = [_count(column, edges) for column, edges in columns]
        self._counts = [counts + new for counts, new in zip(self._counts, found, strict=True)]
        self._num_rows += len(rows)
        if self._num_rows >= self._window_rows:
            self._before, self._counts, self._num_rows = self._counts, self._zeros(), 0

    def distances(self) -> Distances | None:
        """From the reference; None before a tenth of the window was seen."""
        seen = [old + new for old, new in zip(self._before, self._counts, strict=True)]
        num_rows = int(seen[-1].sum())
        if num_rows * 10 < self._window_rows:
            return None
        shares = [counts / num_rows for counts in seen]
        expected = [np.array(parts.shares) for parts in self._parts]
        found = [psi(share, reference) for share, reference in zip(shares, expected, strict=True)]
        by_name = dict(zip(self._names, found, strict=False))
        return Distances(by_name, found[-1], ks(shares[-1], expected[-1]), num_rows)

    def _zeros(self) -> list[npt.NDArray[np.int64]]:
        return [np.zeros(len(parts.shares), np.int64) for parts in self._parts]


def psi(shares: Floats, reference: Floats) -> float:
    """The population stability index of two lists of shares of the same parts."""
    p, q = np.maximum(shares, _LEAST_SHARE), np.maximum(reference, _LEAST_SHARE)
    return float(np.sum((p - q) * np.log(p / q)))


def ks(shares: Floats, reference: Floats) -> float:
    """The Kolmogorov-Smirnov distance of two lists of shares of the same, ordered parts."""
    return float(np.abs(np.cumsum(shares) - np.cumsum(reference)).max())


def _count(column: Rows, edges: Rows) -> npt.NDArray[np.int64]:
    missing = np.isnan(column)
    counts = np.bincount(np.searchsorted(edges, column[~missing], side="left"), minlength=len(edges) + 1)
    return np.append(counts, np.count_nonzero(missing))
