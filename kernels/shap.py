"""Hot: exact SHAP values, row by row; 300 full trees of depth 6 on 30 features, one thread: a row in 100 µs.

Enters: float32 rows, a `ShapForest` (`kernels.shap_forest`, which explains the method), a thread's `Scratch`. Leaves:
contributions to the sum of the trees, the base last. Called by `serve.backends.trees` to explain decisions. Plain twin:
`kernels.reference_shap`; figures, beside XGBoost's own `pred_contribs=True`: `benchmarks/shap.py`.

Splits are records and four points are one register, which together halve the time: loops over many plain arrays
run out of registers, and Numba vectorises no loop of four.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types, uint8, uint32, uint64
from numba.extending import intrinsic

from kernels.forest import F32, MIRRORED, PRESENCE, U8, U32
from kernels.shap_forest import POINTS, TERMS, ShapForest

U64 = npt.NDArray[np.uint64]
_FLOAT32 = np.dtype(np.float32)


class Scratch(threading.local):
    """What the kernel writes besides `out`; one object per `ShapForest`, every thread sees arrays of its own.

    `slots[slot]`; `products[node * POINTS + point]`; `is_open[node]`: the row passes the split into `node` and those
    above it on the same feature; `taken[split]`: the place in `terms`; `earned[slot * POINTS + point]`.
    """

    def __init__(self, forest: ShapForest) -> None:
        self.slots = np.zeros(forest.sources.size, np.float32)
        self.products = np.zeros(forest.max_nodes * POINTS, np.float32)
        self.is_open = np.zeros(forest.max_nodes, np.uint8)
        self.taken = np.zeros(forest.max_nodes, np.uint64)
        self.earned = np.zeros(forest.sources.size * POINTS, np.float32)


def contributions(forest: ShapForest, scratch: Scratch, rows: F32, out: F32) -> None:
    """SHAP values of `rows` [n, features] into `out` [n, features + 1], the base last; a row's sum is its margin.

    Both are float32 and C-contiguous, missing values are NaN; raises ValueError otherwise. `scratch` must have been
    made of `forest`. Thread-safe, allocates nothing, holds no GIL while it runs.
    """
    for name, array, width in (("rows", rows, forest.num_features), ("out", out, forest.num_features + 1)):
        if array.dtype != _FLOAT32 or not array.flags.carray or array.shape != (len(rows), width):
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name} are {found}; allowed C-contiguous float32 [{len(rows)}, {width}]")
    _explain_rows(
        rows,
        forest.sources,
        forest.starts,
        forest.splits,
        forest.terms,
        forest.base,
        scratch.slots,
        scratch.products,
        scratch.is_open,
        scratch.taken,
        scratch.earned,
        out,
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _explain_rows(
    rows: F32,
    sources: U32,
    starts: U32,
    splits: npt.NDArray[np.void],
    terms: F32,
    base: float,
    slots: F32,
    products: F32,
    is_open: U8,
    taken: U64,
    earned: F32,
    out: F32,
) -> None:
    is_open[0] = 1
    stride = uint64(splits.size) * uint64(3 * TERMS)
    num_blocks = uint64(terms.size) // max(stride, uint64(1))
    for row in range(uint64(rows.shape[0])):
        _fill(rows, row, sources, slots)
        earned[:] = 0
        for block in range(num_blocks):
            for tree in range(uint64(starts.size) - uint64(1)):
                begin, end = uint64(starts[tree]), uint64(starts[tree + uint64(1)])
                products[:POINTS] = 1
                _go_down(splits, begin, end, uint64(block) * stride, slots, terms, products, is_open, taken)
                _come_up(splits, begin, end, terms, taken, products, earned)
        _emit(sources, earned, base, out, row)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _go_down(
    splits: npt.NDArray[np.void],
    begin: int,
    end: int,
    offset: int,
    slots: F32,
    terms: F32,
    products: F32,
    is_open: U8,
    taken: U64,
) -> None:
    """Writes every node's product; without a branch on the row, which would be guessed wrong half the time."""
    for place in range(begin, end):
        split = splits[place]
        child = uint64(split.child)
        is_first = uint8(slots[uint64(split.slot)] < split.bound)
        was_open = is_open[uint64(split.above)]
        is_open[child] = was_open & is_first
        is_open[child + uint64(1)] = was_open & (is_first ^ uint8(1))
        choice = uint64(was_open) * (uint64(2) - uint64(is_first))  # CLOSED, FIRST or SECOND
        at = offset + (uint64(place) * uint64(3) + choice) * uint64(TERMS)
        taken[place - begin] = at
        _multiply(products, uint64(split.node) * uint64(POINTS), child * uint64(POINTS), terms, at)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _come_up(
    splits: npt.NDArray[np.void], begin: int, end: int, terms: F32, taken: U64, products: F32, earned: F32
) -> None:
    """Makes every split's product the sum over the leaves below it, and gives its feature what that earns."""
    for back in range(end - begin):
        place = end - uint64(1) - uint64(back)
        split = splits[place]
        node, child = uint64(split.node) * uint64(POINTS), uint64(split.child) * uint64(POINTS)
        gains = taken[place - begin] + uint64(2 * POINTS)
        _gather(products, node, child, terms, gains, earned, uint64(split.slot) * uint64(POINTS))


@njit(nogil=True, cache=True, error_model="numpy")
def _fill(rows: F32, row: int, sources: U32, slots: F32) -> None:
    """Makes the slots of one row, see `kernels.forest`."""
    for slot in range(uint64(sources.size)):
        value, kind = rows[row, uint64(sources[slot]) >> uint64(2)], sources[slot] & uint32(3)
        if kind == uint32(MIRRORED):
            value = -value
        elif kind == uint32(PRESENCE) and not np.isnan(value):
            value = np.float32(0)
        slots[slot] = value


@njit(nogil=True, cache=True, error_model="numpy")
def _emit(sources: U32, earned: F32, base: float, out: F32, row: int) -> None:
    """What a feature's slots have earned, over all points, and the base."""
    out[row, :] = 0
    for slot in range(uint64(sources.size)):
        total = np.float32(0)
        for point in range(uint64(slot) * uint64(POINTS), uint64(slot + 1) * uint64(POINTS)):
            total += earned[point]
        out[row, uint64(sources[slot]) >> uint64(2)] += total
    out[row, uint64(out.shape[1]) - uint64(1)] = base


@intrinsic
def _multiply(_typing: Any, products: Any, node: Any, child: Any, terms: Any, at: Any) -> Any:
    """`products` of both children, which are neighbours: that of `node` times the steps that begin at `terms[at]`."""
    signature = types.void(products, node, child, terms, at)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, node, child, _, at = arguments
        product, step = (_lanes(context, builder, signature, arguments, k) for k in (0, 3))
        above = builder.load(product(node, POINTS), align=4)
        twice = ir.Constant(ir.VectorType(ir.IntType(32), 2 * POINTS), [*range(POINTS), *range(POINTS)])
        factors = builder.load(step(at, 2 * POINTS), align=4)
        both = builder.fmul(builder.shuffle_vector(above, above, twice), factors)
        builder.store(both, product(child, 2 * POINTS), align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _gather(_typing: Any, products: Any, node: Any, child: Any, terms: Any, at: Any, earned: Any, slot: Any) -> Any:
    """`products` of `node`: the sum of its children's; these times the gains at `terms[at]` are added to `earned`."""
    signature = types.void(products, node, child, terms, at, earned, slot)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, node, child, _, at, _, slot = arguments
        product, gain, total = (_lanes(context, builder, signature, arguments, k) for k in (0, 3, 5))
        second = ir.Constant(child.type, POINTS)
        first_sum = builder.load(product(child, POINTS), align=4)
        second_sum = builder.load(product(builder.add(child, second), POINTS), align=4)
        first_gain = builder.load(gain(at, POINTS), align=4)
        second_gain = builder.load(gain(builder.add(at, second), POINTS), align=4)
        fused = ("contract",)
        both = builder.fmul(first_sum, first_gain, flags=fused)
        both = builder.fadd(both, builder.fmul(second_sum, second_gain, flags=fused), flags=fused)
        place = total(slot, POINTS)
        builder.store(builder.fadd(builder.load(place, align=4), both), place, align=4)
        builder.store(builder.fadd(first_sum, second_sum), product(node, POINTS), align=4)
        return context.get_dummy_value()

    return signature, generate


def _lanes(context: Any, builder: Any, signature: Any, arguments: Any, position: int) -> Any:
    """(index, count) -> a pointer to `count` neighbours in the array that is the argument at `position`."""
    array = context.make_array(signature.args[position])(context, builder, arguments[position])

    def pointer(index: Any, count: int) -> Any:
        vector = ir.VectorType(ir.FloatType(), count)
        return builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())

    return pointer
