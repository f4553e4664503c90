"""Hot file: the windows of a micro-batch, pure. Budget: 15 µs a call and 2 µs per row and key.

Takes the states of the batch's distinct keys and its rows; gives each row's windows and the states to write back.
Called by the feature stores, which keep the states, and by the fraud pipeline, which turns windows into model rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kernels import windows as kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

LEVELS = ("1h", "24h", "7d", "30d")
FEATURES: tuple[str, ...] = (
    "amount",
    "hour_of_day",
    "is_night",
    "is_weekend",
    *(f"customer_count_{level}" for level in LEVELS),
    *(f"customer_average_{level}" for level in LEVELS),
    *(f"terminal_count_{level}" for level in LEVELS),
    *(f"terminal_average_{level}" for level in LEVELS),
    "amount_over_customer_average_7d",
    "amount_over_customer_average_30d",
    "amount_over_terminal_average_30d",
    "customer_seconds_since_last",
    "terminal_seconds_since_last",
)

_TORN = bytes(kernel.WORD_BYTES)  # stands for a state that is no whole number of words; the kernel finds it damaged


@dataclass(frozen=True, slots=True)
class Windows:
    """What was seen of each row's key before the row; rows in the order they came.

    `totals` is int64 [n, 8]: the count per level of `LEVELS`, then the sum per level in ten-thousandths.
    `since_last_s` is float64 [n]: seconds since the key's newest event, 0 where that is later than the row (the newest
    event *at or before* the row is not kept), NaN for an unknown key. `is_late` is bool [n]: the row was more than 24 h
    behind its key's newest event, so it was scored over what is retained and not entered.
    """

    totals: Ints
    since_last_s: Floats
    is_late: Flags

    def rows(self, begin: int, end: int) -> Windows:
        """The same for rows `begin` to `end`, as views."""
        return Windows(self.totals[begin:end], self.since_last_s[begin:end], self.is_late[begin:end])


@dataclass(frozen=True, slots=True)
class Advance:
    """A batch's windows and, per key, whether its state was damaged (and started anew) and its new state."""

    windows: Windows
    is_damaged: Flags
    _states: Ints
    _bounds: Ints

    def new_states(self) -> list[bytes]:
        """The keys' states after the batch, in the keys' order; empty for a key without rows and without a state."""
        blob = self._states.tobytes()
        return [blob[begin:end] for begin, end in pairwise(self._bounds.tolist())]


def to_ten_thousandths(amount: Floats) -> Ints:
    """Amounts as the integers the windows sum, rounded half to even."""
    return np.rint(amount * 1e4).astype(np.int64)


def advance(
    states: Sequence[bytes | memoryview | None],
    key_of_row: npt.NDArray[np.int32],
    event_s: Ints,
    amount_e4: Ints,
) -> Advance:
    """Reads, then enters, each row in order; a row sees its key's state and the earlier rows of the batch.

    `states` has one entry per distinct key, None or empty for an unknown one; customers and terminals may share a call.
    `key_of_row` int32 [n] points into it, `event_s` int64 [n] is in UTC seconds, `amount_e4` int64 [n] in
    ten-thousandths. A damaged state counts as unknown. Releases the GIL. Raises ValueError for rows out of range
    (times 0 to 2**36 - 1, amounts to ±1e9), whose checking is the caller's: one such row fails the call.
    """
    if not key_of_row.shape == event_s.shape == amount_e4.shape:
        raise ValueError(f"rows differ: {key_of_row.shape} keys, {event_s.shape} times, {amount_e4.shape} amounts")
    words, num_bytes = _join(states)
    totals, since_last_s, is_late, is_damaged, new_states, bounds = kernel.advance(
        words,
        num_bytes,
        # Copies, 0.2 µs each: read-only or strided columns would be new types, and compiled for while a request waits.
        np.array(key_of_row, np.int32),
        np.array(event_s, np.int64),
        np.array(amount_e4, np.int64),
    )
    return Advance(Windows(totals, since_last_s, is_late), is_damaged, new_states, bounds)


def assemble(
    amount_e4: Ints, event_s: Ints, customer: Windows, terminal: Windows, out: npt.NDArray[np.float32]
) -> None:
    """Writes the model's rows, columns as in `FEATURES`, into `out`: float32 [n, F], C-contiguous.

    What is unknown (an average of nothing, the time since a first event) is NaN. Online and offline rows both come from
    here. Raises ValueError if the shapes differ.
    """
    n = len(event_s)
    if out.shape != (n, len(FEATURES)) or customer.totals.shape[0] != n or terminal.totals.shape[0] != n:
        raise ValueError(f"out is {out.shape} for {n} rows; allowed ({n}, {len(FEATURES)}), windows of {n} rows each")
    kernel.assemble(
        np.array(amount_e4, np.int64),
        np.array(event_s, np.int64),
        (customer.totals, customer.since_last_s),
        (terminal.totals, terminal.since_last_s),
        out,
    )


def warm_up() -> None:
    """Compiles the kernels, or loads them from Numba's cache (seconds the first time), so that no request waits."""
    one = np.ones(1, np.int64)
    seen = advance([None], np.zeros(1, np.int32), one, one).windows
    assemble(one, one, seen, seen, np.empty((1, len(FEATURES)), np.float32))


def _join(states: Sequence[bytes | memoryview | None]) -> tuple[Ints, Ints]:
    """All states end to end as words, and the bytes of each."""
    blobs = [state or b"" for state in states]
    num_bytes = np.fromiter(map(len, blobs), np.int64, len(blobs))
    if np.bitwise_or.reduce(num_bytes) % kernel.WORD_BYTES:
        return _join([blob if len(blob) % kernel.WORD_BYTES == 0 else _TORN for blob in blobs])
    return np.frombuffer(b"".join(blobs), np.int64), num_bytes
