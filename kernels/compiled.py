"""Hot: scores rows by trees compiled to machine code, called through the address of their `predict` function.

Enters: float32 rows, the address that `serve.backends.tree_library` found in the shared library, a thread's `Scratch`.
Leaves: answers in `out`. Called by `serve.backends.trees` for few rows, where it measures fastest. The library's own
Python class costs several times the trees themselves (`benchmarks/trees.py`). Plain twin: `kernels.reference_trees`.

The library's interface (TL2cgen 1.0, header.h): `void predict(union Entry* data, int pred_margin, T* result)`, where an
Entry is as wide as T, float or double, and -1 in its first four bytes marks a missing value; the sums are *added* to
`result`, base scores and averaging included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, njit, types, uint64
from numba.extending import intrinsic

from kernels.forest import F32, Real
from kernels.trees import BLOCK, emit


@intrinsic
def _call_predict(_context: Any, address: Any, entries: Any, result: Any) -> Any:
    """`predict(entries, 1, result)` of the function at `address`; all three are addresses as uintp."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer, ir.IntType(32), pointer])
        entry_address, result_address = (builder.inttoptr(argument, pointer) for argument in arguments[1:])
        wants_sums = ir.Constant(ir.IntType(32), 1)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [entry_address, wants_sums, result_address])
        return _target.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), generate


@njit(nogil=True, cache=True, error_model="numpy")
def score_compiled(
    rows: F32, address: int, post: int, alpha: float, entries: Real, result: Real, total: Real, out: F32
) -> None:
    """`rows` [n, features] by the compiled trees at `address` into `out` (`kernels.trees.emit`), row by row."""
    missing = entries.view(np.int32)
    words = uint64(missing.size) // uint64(entries.size)
    for row in range(uint64(rows.shape[0])):
        for feature in range(uint64(rows.shape[1])):
            value = rows[row, feature]
            if np.isnan(value):
                missing[feature * words] = int32(-1)
            else:
                entries[feature] = value
        for k in range(uint64(result.size)):
            result[k] = 0
        _call_predict(uint64(address), uint64(entries.ctypes.data), uint64(result.ctypes.data))
        for k in range(uint64(result.size)):
            total[k * uint64(BLOCK)] = result[k]
        emit(total, uint64(0), post, alpha, out, row)
