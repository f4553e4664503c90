"""The forms a tree model can be run in, and which one for how many rows: measured, not assumed.

Enters: imported trees, perhaps a compiled library. Leaves: runnable forms and a `Plan` of the fastest per batch size.
Called by `serve.backends.trees` at load. Which form wins depends on the model and the processor: branches of compiled
code mispredict on varied rows, padded trees waste work on uneven ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kernels.compiled import score_compiled
from kernels.forest import F32, MIRRORED, Forest, complete
from kernels.trees import (
    EXPONENTIAL,
    IDENTITY,
    SIGMOID,
    SOFTMAX,
    STANDARD_RATIO,
    Scratch,
    score_blocks,
    score_rows,
    walk_blocks,
)
from serve.backends.tree_import import ImportedTrees
from serve.backends.tree_library import TreeLibrary

Form = Callable[[F32, F32], None]
"""Scores rows, float32 [n, features], C-contiguous and writeable, into answers, float32 [n, columns]; thread-safe."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes that are measured; a batch runs in the form that won the largest of them not above it."""

_ROWS_PER_SAMPLE = 32
_ROUNDS = 5
_CLEARLY = 1.05
_BUDGET_NS = 400_000_000
_POSTPROCESSORS = {
    "identity": IDENTITY,
    "sigmoid": SIGMOID,
    "softmax": SOFTMAX,
    "exponential": EXPONENTIAL,
    "exponential_standard_ratio": STANDARD_RATIO,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """`names[i]` won at `SIZES[i]`; `cost_us[name][i]` is the least it took there, microseconds per batch."""

    names: tuple[str, ...]
    cost_us: Mapping[str, tuple[float, ...]]

    def crossovers(self) -> tuple[tuple[int, str], ...]:
        """(rows, form) wherever the form changes, the first for one row."""
        changes = [i for i, name in enumerate(self.names) if i == 0 or name != self.names[i - 1]]
        return tuple((SIZES[i], self.names[i]) for i in changes)


def numba_forms(imported: ImportedTrees, scratch: Scratch) -> dict[str, Form]:
    """`rows` and `blocks` where the trees can be padded, `walk` where they cannot."""
    forest = imported.forest
    answer = (_POSTPROCESSORS[imported.postprocessor], imported.alpha)
    if not forest.has_complete_form:
        return {"walk": _walk_form(forest, answer, scratch)}
    trees = complete(forest)
    constants = (trees.sources, trees.columns, trees.slot, trees.bound, trees.leaf, trees.base, trees.depth, *answer)

    def by_rows(rows: F32, out: F32) -> None:
        score_rows(rows, *constants, scratch.slots, scratch.total, out)

    def by_blocks(rows: F32, out: F32) -> None:
        score_blocks(rows, *constants, scratch.slots, scratch.index, scratch.total, out)

    return {"rows": by_rows, "blocks": by_blocks}


def _walk_form(forest: Forest, answer: tuple[int, float], scratch: Scratch) -> Form:
    nodes = (forest.slot, forest.bound, forest.child, forest.category, forest.bitsets, forest.leaf)
    constants = (forest.sources, forest.columns, forest.roots, *nodes, forest.base, *answer)

    def by_walking(rows: F32, out: F32) -> None:
        walk_blocks(rows, *constants, scratch.slots, scratch.total, out)

    return by_walking


def compiled_form(imported: ImportedTrees, library: TreeLibrary, scratch: Scratch) -> Form:
    """The trees as machine code."""
    constants = (library.predict_address, _POSTPROCESSORS[imported.postprocessor], imported.alpha)

    def by_machine_code(rows: F32, out: F32) -> None:
        score_compiled(rows, *constants, scratch.entries, scratch.result, scratch.total, out)

    return by_machine_code


def make_scratch(forest: Forest) -> Scratch:
    """What the forms of `forest` write beside their answers."""
    return Scratch(forest.sources.size, forest.num_features, forest.base)


def probe_rows(forest: Forest, num_rows: int, missing_share: float) -> F32:
    """Rows that reach all of the trees: every value on a threshold of its feature, or just beside, or missing."""
    random = np.random.default_rng(0)
    rows = np.zeros((num_rows, forest.num_features), np.float32)
    inner = np.flatnonzero(forest.child)
    inner = inner[np.argsort(forest.slot[inner], kind="stable")]
    starts = np.searchsorted(forest.slot[inner], np.arange(forest.sources.size + 1))
    for source, begin, end in zip(forest.sources, starts, starts[1:], strict=False):
        node = random.choice(inner[begin:end], num_rows)
        value = forest.bound[node] * np.float32(-1 if source & 3 == MIRRORED else 1)
        beside = np.nextafter(value, random.choice([-np.inf, np.inf], num_rows).astype(np.float32))
        value = np.where(random.random(num_rows) < 0.5, value, beside)
        category = random.integers(0, 34 * (1 + forest.bitsets[np.abs(forest.category[node])].astype(np.int64)))
        value = np.where(forest.category[node] != 0, category, value)
        rows[:, source >> 2] = np.where(random.random(num_rows) < 0.7, value, rows[:, source >> 2])
    rows[random.random(rows.shape) < missing_share] = np.nan
    return rows


def num_disagreeing(imported: ImportedTrees, library: TreeLibrary, rows: F32) -> int:
    """How many of `rows` get other sums from the compiled trees than from the kernels, beyond float summation order."""
    sums = replace(imported, postprocessor="identity")
    forest, scratch = imported.forest, make_scratch(imported.forest)
    expected, found = (np.empty((len(rows), forest.base.size), np.float32) for _ in range(2))
    next(iter(numba_forms(sums, scratch).values()))(rows, expected)
    compiled_form(sums, library, scratch)(rows, found)
    largest = np.maximum.reduceat(np.abs(forest.leaf).max(axis=1), forest.roots)
    allowed = 1e-5 * float(largest.sum() + np.abs(forest.base).max()) + np.finfo(np.float32).tiny
    with np.errstate(invalid="ignore"):
        is_close = (np.abs(expected - found) <= allowed) | (expected == found)
    return int(np.count_nonzero(~is_close.all(axis=1)))


def measure(forms: Mapping[str, Form], rows: F32, num_columns: int, clock_ns: Callable[[], int]) -> Plan:
    """Runs every form at every size on varied rows, in turns, and picks; some 50 ms for 300 trees.

    `clock_ns` should be the thread's own processor time: on a busy machine the wall clock measures the neighbours.
    """
    out = np.empty((SIZES[-1], num_columns), np.float32)
    for form in forms.values():
        form(rows[:1], out[:1])
    began_ns = clock_ns()
    cost_us: dict[str, list[float]] = {name: [] for name in forms}
    for size in SIZES:
        if clock_ns() - began_ns > _BUDGET_NS and size > 1:
            break
        rounds = [[_sample_us(form, rows, out[:size], clock_ns) for form in forms.values()] for _ in range(_ROUNDS)]
        for name, samples in zip(forms, zip(*rounds, strict=True), strict=True):
            cost_us[name].append(min(samples))
    smooth = {name: _without_noise(costs) for name, costs in cost_us.items()}
    return Plan(_winners(smooth), smooth)


def _without_noise(costs: list[float]) -> tuple[float, ...]:
    """The costs at doubling sizes, where no batch costs more than a larger one, or than two of half its size."""
    for i in range(1, len(costs)):
        costs[i] = min(costs[i], 2 * costs[i - 1])
    for i in reversed(range(len(costs) - 1)):
        costs[i] = min(costs[i], costs[i + 1])
    return tuple(costs)


def _winners(cost_us: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    """The form of every size: the one before, unless another is clearly faster; the last for sizes not measured."""
    names: list[str] = []
    for costs in zip(*cost_us.values(), strict=True):
        by_name = dict(zip(cost_us, costs, strict=True))
        fastest = min(by_name, key=by_name.__getitem__)
        stays = bool(names) and by_name[names[-1]] <= by_name[fastest] * _CLEARLY
        names.append(names[-1] if stays else fastest)
    return tuple(names + names[-1:] * (len(SIZES) - len(names)))


def _sample_us(form: Form, rows: F32, out: F32, clock_ns: Callable[[], int]) -> float:
    """Microseconds per batch of `len(out)` rows, over enough batches of different rows to be measurable."""
    size = len(out)
    batches = [rows[start : start + size] for start in range(0, max(size, _ROWS_PER_SAMPLE), size)]
    began_ns = clock_ns()
    for batch in batches:
        form(batch, out)
    return (clock_ns() - began_ns) / len(batches) / 1e3
