"""A batch as the stores see it: the keys of its windows, the windows advanced, the entries to record. Pure.

Called by the embedded store's records and by Redis's, which differ in where states come from and go to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve.features.store import UNLABELLED, Events
from serve.features.windows import Advance, Customers, advance, terminal_number

CUSTOMER, TERMINAL = b"c", b"t"
"""What the key of a window begins with."""

EntryFields = tuple[str, str, str, int, int, bytes, list[float] | None, int, bool]
"""A `LogEntry`'s fields: as a tuple it is encoded alike, and made in a tenth of the time."""


@dataclass(frozen=True, slots=True)
class WindowKeys:
    """A batch's distinct keys, customers first, each kind sorted (neighbours share pages); and the key of each of 2n
    rows: all rows' customers, then all rows' terminals.
    """

    keys: list[bytes]
    key_of_row: npt.NDArray[np.int32]
    customers: Customers


def window_keys(events: Events) -> WindowKeys:
    """The keys of a batch's windows."""
    customers, terminals = sorted(set(events.customer_ids)), sorted(set(events.terminal_ids))
    number_of_customer = dict(zip(customers, range(len(customers)), strict=True))
    number_of_terminal = dict(zip(terminals, range(len(customers), len(customers) + len(terminals)), strict=True))
    rows = [number_of_customer[name] for name in events.customer_ids]
    rows += [number_of_terminal[name] for name in events.terminal_ids]
    keys = [CUSTOMER + name.encode() for name in customers] + [TERMINAL + name.encode() for name in terminals]
    places = Customers(
        len(customers), np.array([terminal_number(name) for name in events.terminal_ids], np.int64), events.place
    )
    return WindowKeys(keys, np.array(rows, np.int32), places)


def advance_batch(
    states: Sequence[bytes | memoryview | None], keys: WindowKeys, events: Events, skipped: Sequence[int]
) -> Advance:
    """Both windows of every row, from the states of `keys`. Rows decided earlier were entered then: they are moved to a
    key of their own, the last one.
    """
    key_of_row = keys.key_of_row
    if skipped:
        n = len(events.transaction_ids)
        key_of_row = key_of_row.copy()
        key_of_row[[*skipped, *(row + n for row in skipped)]] = len(states)
        states = [*states, None]
    event_s = np.concatenate((events.event_s, events.event_s))
    amount_e4 = np.concatenate((events.amount_e4, events.amount_e4))
    return advance(states, key_of_row, event_s, amount_e4, keys.customers)


def entries_of(events: Events, decisions: Sequence[bytes | None], advanced: Advance) -> Iterator[EntryFields]:
    """What is recorded of the rows that have a decision, in order."""
    n = len(events.transaction_ids)
    columns = zip(
        events.transaction_ids, events.customer_ids, events.terminal_ids, events.event_s.tolist(),
        events.amount_e4.tolist(), decisions, _places(events), advanced.windows.is_late[n:].tolist(), strict=True,
    )  # fmt: skip
    for transaction_id, customer_id, terminal_id, event_s, amount_e4, decision, place, is_late in columns:
        if decision is not None:
            yield transaction_id, customer_id, terminal_id, event_s, amount_e4, decision, place, UNLABELLED, is_late


def _places(events: Events) -> list[list[float] | None]:
    """What is recorded of where the rows were."""
    if np.isnan(events.place).all():
        return [None] * len(events.place)
    return [None if place[0] != place[0] else place for place in events.place.tolist()]
