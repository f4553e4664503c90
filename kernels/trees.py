"""Hot: scores rows by decision trees; 300 trees of depth 6 on 30 features, one thread: 1 row in 6 µs, 256 in 600 µs.

Enters: float32 rows, a forest's arrays (`kernels.forest`), a thread's `Scratch`. Leaves: answers in `out`. Called by
`serve.backends.trees`, which picks the kernel by measurement. Plain twin: `kernels.reference_trees`; figures:
`benchmarks/trees.py`. All three sum the trees in their order, so they agree to the last bit.

- `score_rows`: few rows. One row at a time, `TREES_AT_ONCE` trees side by side, because one walk is a chain of
  dependent loads that leaves most of a core idle.
- `score_blocks`: many rows. A block of rows, slot by slot; level by level through one tree for all of them. The first
  three levels compare whole slots and select (SIMD, no gathers); the rest advance every row's index, independently.
- `walk_blocks`: trees too deep to pad, categorical splits, leaves that hold vectors.

Indices are unsigned throughout: Numba adds a test for negative ones to every signed access (twice the time here).
"""

from __future__ import annotations

import threading

import numpy as np
from numba import njit, uint32, uint64

from kernels.forest import F32, I32, MIRRORED, PRESENCE, TREES_AT_ONCE, U32, Real

BLOCK = 64
"""Rows of a block; their slots stay in the first-level cache (32 measured the same, 128 a tenth slower)."""

IDENTITY, SIGMOID, SOFTMAX, EXPONENTIAL, STANDARD_RATIO = range(5)
"""What makes answers of sums: Treelite's identity, sigmoid, softmax, exponential, exponential_standard_ratio."""


class Scratch(threading.local):
    """What the kernels write besides `out`; one object per model, which every thread sees with arrays of its own.

    `slots[s * BLOCK + row]` (`score_rows`: `slots[s]`), `index[row]`, `total[k * BLOCK + row]`; `entries` and `result`
    are one row and its sums as compiled trees take them.
    """

    def __init__(self, num_slots: int, num_features: int, base: Real) -> None:
        self.slots = np.zeros(max(1, num_slots) * BLOCK, np.float32)
        self.index = np.zeros(BLOCK, np.uint32)
        self.total = np.zeros(base.size * BLOCK, base.dtype)
        self.entries = np.zeros(max(1, num_features), base.dtype)
        self.result = np.zeros(base.size, base.dtype)


@njit(nogil=True, cache=True, error_model="numpy")
def score_rows(
    rows: F32,
    sources: U32,
    columns: U32,
    slot: U32,
    bound: F32,
    leaf: Real,
    base: Real,
    depth: int,
    post: int,
    alpha: float,
    slots: F32,
    total: Real,
    out: F32,
) -> None:
    """`rows` [n, features] by complete trees into `out` (`emit`), one row after another."""
    nodes = uint64(1) << uint64(depth)
    for row in range(uint64(rows.shape[0])):
        _fill(rows, row, uint64(1), uint64(1), sources, base, slots, total)
        for tree in range(uint64(0), uint64(columns.size), uint64(TREES_AT_ONCE)):
            at_a = uint64(tree) * nodes
            at_b, at_c, at_d = at_a + nodes, at_a + uint64(2) * nodes, at_a + uint64(3) * nodes
            a, b, c, d = uint64(1), uint64(1), uint64(1), uint64(1)
            for _ in range(depth):
                a = _descend(slots, uint64(1), uint64(0), slot, bound, at_a, a)
                b = _descend(slots, uint64(1), uint64(0), slot, bound, at_b, b)
                c = _descend(slots, uint64(1), uint64(0), slot, bound, at_c, c)
                d = _descend(slots, uint64(1), uint64(0), slot, bound, at_d, d)
            total[uint64(columns[tree]) * uint64(BLOCK)] += leaf[at_a + a - nodes]
            total[uint64(columns[tree + uint64(1)]) * uint64(BLOCK)] += leaf[at_b + b - nodes]
            total[uint64(columns[tree + uint64(2)]) * uint64(BLOCK)] += leaf[at_c + c - nodes]
            total[uint64(columns[tree + uint64(3)]) * uint64(BLOCK)] += leaf[at_d + d - nodes]
        emit(total, uint64(0), post, alpha, out, uint64(row))


@njit(nogil=True, cache=True, error_model="numpy")
def score_blocks(
    rows: F32,
    sources: U32,
    columns: U32,
    slot: U32,
    bound: F32,
    leaf: Real,
    base: Real,
    depth: int,
    post: int,
    alpha: float,
    slots: F32,
    index: U32,
    total: Real,
    out: F32,
) -> None:
    """`rows` [n, features] by complete trees into `out` (`emit`), `BLOCK` rows at a time, level by level."""
    num_rows, nodes = uint64(rows.shape[0]), uint64(1) << uint64(depth)
    for begin in range(uint64(0), num_rows, uint64(BLOCK)):
        count = min(uint64(BLOCK), num_rows - begin)
        _fill(rows, begin, count, uint64(BLOCK), sources, base, slots, total)
        for tree in range(uint64(columns.size)):
            at = uint64(tree) * nodes
            _first_three_levels(slots, count, slot[at : at + uint64(8)], bound[at : at + uint64(8)], index)
            for _ in range(3, depth):
                for r in range(count):
                    index[r] = _descend(slots, uint64(BLOCK), uint64(r), slot, bound, at, uint64(index[r]))
            first = uint64(columns[tree]) * uint64(BLOCK)
            for r in range(count):
                total[first + uint64(r)] += leaf[at + uint64(index[r]) - nodes]
        for r in range(count):
            emit(total, uint64(r), post, alpha, out, uint64(begin) + uint64(r))


@njit(nogil=True, cache=True, error_model="numpy")
def walk_blocks(
    rows: F32,
    sources: U32,
    columns: U32,
    roots: U32,
    slot: U32,
    bound: F32,
    child: U32,
    category: I32,
    bitsets: U32,
    leaf: Real,
    base: Real,
    post: int,
    alpha: float,
    slots: F32,
    total: Real,
    out: F32,
) -> None:
    """`rows` [n, features] by any trees into `out` (`emit`), node by node; a tree serves a block while it is cached."""
    num_rows = uint64(rows.shape[0])
    for begin in range(uint64(0), num_rows, uint64(BLOCK)):
        count = min(uint64(BLOCK), num_rows - begin)
        _fill(rows, begin, count, uint64(BLOCK), sources, base, slots, total)
        for tree in range(uint64(roots.size)):
            for r in range(count):
                node = uint64(roots[tree])
                while child[node] != uint32(0):
                    value = slots[uint64(slot[node]) * uint64(BLOCK) + uint64(r)]
                    is_first = value < bound[node]
                    if category[node] != 0:
                        is_first = _goes_first(value, category[node], bitsets)
                    node = uint64(child[node]) + uint64(not is_first)
                for k in range(uint64(leaf.shape[1])):
                    total[(uint64(columns[tree]) + uint64(k)) * uint64(BLOCK) + uint64(r)] += leaf[node, uint64(k)]
        for r in range(count):
            emit(total, uint64(r), post, alpha, out, uint64(begin) + uint64(r))


@njit(nogil=True, cache=True, error_model="numpy")
def emit(total: Real, place: int, post: int, alpha: float, out: F32, row: int) -> None:
    """Answers of one row into `out[row]` from its sums `total[k * BLOCK + place]`, which are overwritten.

    `out` has a column per sum; or two for one sum p: 1 - p and p; or one for two sums: the second.
    """
    num_sums = uint64(total.size) // uint64(BLOCK)
    if post == SOFTMAX:
        _softmax(total, place, num_sums)
    elif post != IDENTITY:
        for k in range(num_sums):
            at = uint64(k) * uint64(BLOCK) + place
            total[at] = _elementwise(total[at], post, alpha)
    if uint64(out.shape[1]) == num_sums:
        for k in range(num_sums):
            out[row, uint64(k)] = total[uint64(k) * uint64(BLOCK) + place]
    elif num_sums == uint64(1):
        out[row, uint64(0)] = 1.0 - total[place]
        out[row, uint64(1)] = total[place]
    else:
        out[row, uint64(0)] = total[uint64(BLOCK) + place]


@njit(nogil=True, cache=True, error_model="numpy")
def _fill(rows: F32, begin: int, count: int, stride: int, sources: U32, base: Real, slots: F32, total: Real) -> None:
    """Makes the slots of `count` rows from `begin` on and sets their sums to `base`."""
    for s in range(uint64(sources.size)):
        feature, kind = uint64(sources[s]) >> uint64(2), sources[s] & uint32(3)
        for r in range(count):
            value = rows[begin + uint64(r), feature]
            if kind == uint32(MIRRORED):
                value = -value
            elif kind == uint32(PRESENCE) and not np.isnan(value):
                value = np.float32(0)
            slots[uint64(s) * stride + uint64(r)] = value
    for k in range(uint64(base.size)):
        for r in range(count):
            total[uint64(k) * uint64(BLOCK) + uint64(r)] = base[k]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _descend(slots: F32, stride: int, row: int, slot: U32, bound: F32, at: int, node: int) -> int:
    """One level down from `node` of the complete tree that begins `at`."""
    is_first = slots[uint64(slot[at + node]) * stride + row] < bound[at + node]
    return uint64(2) * node + uint64(not is_first)  # type: ignore[no-any-return]


@njit(nogil=True, cache=True, error_model="numpy")
def _first_three_levels(slots: F32, count: int, slot: U32, bound: F32, index: U32) -> None:
    """Nodes 8 to 15 that `count` rows reach; all seven comparisons are made, on whole slots, and selected from."""
    s1, s2, s3, s4 = slot[1] * uint32(BLOCK), slot[2] * uint32(BLOCK), slot[3] * uint32(BLOCK), slot[4] * uint32(BLOCK)
    s5, s6, s7 = slot[5] * uint32(BLOCK), slot[6] * uint32(BLOCK), slot[7] * uint32(BLOCK)
    b1, b2, b3, b4, b5, b6, b7 = bound[1], bound[2], bound[3], bound[4], bound[5], bound[6], bound[7]
    for k in range(count):
        r = uint32(k)
        below_4 = uint32(8) if slots[s4 + r] < b4 else uint32(9)
        below_5 = uint32(10) if slots[s5 + r] < b5 else uint32(11)
        below_6 = uint32(12) if slots[s6 + r] < b6 else uint32(13)
        below_7 = uint32(14) if slots[s7 + r] < b7 else uint32(15)
        below_2 = below_4 if slots[s2 + r] < b2 else below_5
        below_3 = below_6 if slots[s3 + r] < b3 else below_7
        index[r] = below_2 if slots[s1 + r] < b1 else below_3


@njit(nogil=True, cache=True, error_model="numpy")
def _goes_first(value: float, category: int, bitsets: U32) -> bool:
    """Whether a categorical split sends `value` to its first child: members of its set, truncated, and maybe NaN."""
    if np.isnan(value):
        return category < 0
    begin = uint64(abs(category))
    if not (value >= 0 and value < np.float32(32.0) * np.float32(bitsets[begin])):
        return False
    member = uint64(value)
    word = bitsets[begin + uint64(1) + (member >> uint64(5))]
    return bool((word >> uint32(member & uint64(31))) & uint32(1))


@njit(nogil=True, cache=True, error_model="numpy")
def _elementwise(value: float, post: int, alpha: float) -> float:
    if post == SIGMOID:
        return 1.0 / (1.0 + np.exp(-alpha * value))  # type: ignore[no-any-return]
    if post == EXPONENTIAL:
        return np.exp(np.float64(value))  # type: ignore[no-any-return]
    return np.exp2(-value / alpha)  # type: ignore[no-any-return]


@njit(nogil=True, cache=True, error_model="numpy")
def _softmax(total: Real, place: int, num_sums: int) -> None:
    largest = total[place]
    for k in range(num_sums):
        largest = max(largest, total[uint64(k) * uint64(BLOCK) + place])
    norm = 0.0
    for k in range(num_sums):
        at = uint64(k) * uint64(BLOCK) + place
        total[at] = np.exp(np.float64(total[at] - largest))
        norm += total[at]
    for k in range(num_sums):
        total[uint64(k) * uint64(BLOCK) + place] /= norm
