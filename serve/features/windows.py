"""Hot file: the windows of a micro-batch, pure. Budget: 15 µs a call and 2 µs per row and key.

Takes the states of the batch's distinct keys and its rows; gives each row's windows and the states to write back.
Called by the feature stores, which keep the states, and by the fraud pipeline, which turns windows into model rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

from kernels import profiles
from kernels import windows as kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

LEVELS = ("1h", "24h", "7d", "30d")
RISKS = ("1d", "7d", "30d")
PROFILE = ("customer_terminals_7d", "is_new_terminal", "km_from_home", "km_per_hour")
"""Columns of a customer's profile; the first two are the model's too."""
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
    *(f"terminal_risk_{risk}" for risk in RISKS),
    *(f"terminal_frauds_{risk}" for risk in RISKS),
    "customer_terminals_7d",
    "is_new_terminal",
)

_TORN = bytes(kernel.WORD_BYTES)  # stands for a state that is no whole number of words; the kernel finds it damaged


@dataclass(frozen=True, slots=True)
class Windows:
    """What was seen of each row's key before the row; rows in the order they came.

    `totals` is int64 [n, 14]: the count per level of `LEVELS`, the sum per level in ten-thousandths, then per window of
    `RISKS`, ending 7 days ago, the count, and how many of it labels called fraud.
    `since_last_s` is float64 [n]: seconds since the key's newest event, 0 where that is later than the row (the newest
    event *at or before* the row is not kept), NaN for an unknown key. `is_late` is bool [n]: the row was more than 24 h
    behind its key's newest event, so it was scored over what is retained and not entered. `profile` is float64 [n, 4]:
    the customer's terminals of 7 days, whether this one is new in 30, kilometres from home, kilometres an hour since
    the last place; NaN for what is not known, and for terminals.
    """

    totals: Ints
    since_last_s: Floats
    profile: Floats
    is_late: Flags

    def rows(self, begin: int, end: int) -> Windows:
        """The same for rows `begin` to `end`, as views."""
        rows = slice(begin, end)
        return Windows(self.totals[rows], self.since_last_s[rows], self.profile[rows], self.is_late[rows])

    @classmethod
    def unknown(cls, n: int) -> Windows:
        """Of keys nothing is known about."""
        nothing = np.full((n, profiles.NUM_COLUMNS), np.nan)
        return cls(np.zeros((n, kernel.NUM_TOTALS), np.int64), np.full(n, np.nan), nothing, np.zeros(n, np.bool_))


@dataclass(frozen=True, slots=True)
class Customers:
    """What a batch's first keys, the customers, are seen with: per row the terminal's number (`terminal_number`) and
    the place, float64 [n, 2], latitude and longitude or NaN. `num_keys` is how many of the keys they are.
    """

    num_keys: int
    terminal: Ints
    place: Floats


_NO_CUSTOMERS = Customers(0, np.zeros(0, np.int64), np.zeros((0, 2)))


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
    customers: Customers | None = None,
) -> Advance:
    """Reads, then enters, each row in order; a row sees its key's state and the earlier rows of the batch.

    `states` has one entry per distinct key, None or empty for an unknown one; customers come first, terminals share the
    call. `key_of_row` int32 [n] points into it, `event_s` int64 [n] is in UTC seconds, `amount_e4` int64 [n] in
    ten-thousandths; the rows of `customers` are the first ones. A damaged state counts as unknown. Releases the GIL.
    Raises ValueError for rows out of range (times 0 to 2**36 - 1, amounts to ±1e9), whose checking is the caller's: one
    such row fails the call.
    """
    if not key_of_row.shape == event_s.shape == amount_e4.shape:
        raise ValueError(f"rows differ: {key_of_row.shape} keys, {event_s.shape} times, {amount_e4.shape} amounts")
    words, num_bytes = _join(states)
    customers = customers or _NO_CUSTOMERS
    totals, since_last_s, profile, is_late, is_damaged, new_states, bounds = kernel.advance(
        words,
        num_bytes,
        # Copies, 0.2 µs each: read-only or strided columns would be new types, and compiled for while a request waits.
        np.array(key_of_row, np.int32),
        np.array(event_s, np.int64),
        np.array(amount_e4, np.int64),
        customers.num_keys,
        np.array(customers.terminal, np.int64),
        np.array(customers.place, np.float64, order="C"),
    )
    return Advance(Windows(totals, since_last_s, profile, is_late), is_damaged, new_states, bounds)


def mark(state: bytes | memoryview, event_s: int, *, is_fraud: bool) -> bytes:
    """A terminal's state after a label: one more fraud at the event's second, or one that was none after all."""
    words, num_bytes = _join([state])
    marked: bytes = kernel.mark(words, event_s, 1 if is_fraud else -1).tobytes() if num_bytes[0] else b""
    return marked


def terminal_number(terminal_id: str) -> int:
    """What a profile remembers of a terminal: 32 bits of its id, the same in every process."""
    return crc32(terminal_id.encode())


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
        (customer.totals, customer.since_last_s, customer.profile),
        (terminal.totals, terminal.since_last_s, terminal.profile),
        out,
    )


def warm_up() -> None:
    """Compiles the kernels, or loads them from Numba's cache (seconds the first time), so that no request waits."""
    one = np.ones(1, np.int64)
    advanced = advance([None], np.zeros(1, np.int32), one, one)
    seen = advanced.windows
    mark(advanced.new_states()[0], 1, is_fraud=True)
    assemble(one, one, seen, seen, np.empty((1, len(FEATURES)), np.float32))


def _join(states: Sequence[bytes | memoryview | None]) -> tuple[Ints, Ints]:
    """All states end to end as words, and the bytes of each."""
    blobs = [state or b"" for state in states]
    num_bytes = np.fromiter(map(len, blobs), np.int64, len(blobs))
    if np.bitwise_or.reduce(num_bytes) % kernel.WORD_BYTES:
        return _join([blob if len(blob) % kernel.WORD_BYTES == 0 else _TORN for blob in blobs])
    return np.frombuffer(b"".join(blobs), np.int64), num_bytes
