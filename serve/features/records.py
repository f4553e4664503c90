"""Hot file: the records of the embedded store, and how a batch reads and writes them inside one transaction.

Takes an open LMDB transaction and a batch's columns; gives windows and earlier decisions, or leaves records. Called by
`serve.features.embedded`. Budget: 25 µs per transaction of a batch of 256, both ways (`benchmarks/feature_store.py`).

All records are in one B-tree, so that one path of pages is written per record, and none has to be created at opening:

    c<customer id>, t<terminal id>   window state of the key (`kernels.windows`)
    x<transaction id>                sequence number of its log entry, 8 bytes
    0xff<sequence number, 8 bytes>   log entry: event and decision, in the order of commits (msgpack)

The sequence number is the commit's wall time in microseconds, or one more than the last where that is greater.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from serve.features.store import Events, Stored
from serve.features.windows import Advance, advance

if TYPE_CHECKING:
    import lmdb

Keys = npt.NDArray[np.int32]

WINDOWS_BEGIN, WINDOWS_END = b"c", b"u"
"""Bounds of the keys of windows."""
_DECISION = b"x"
_LOG = b"\xff"


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event and its decision: what a replay needs to rebuild the windows, and a retry to be answered alike."""

    transaction_id: str
    customer_id: str
    terminal_id: str
    event_s: int
    amount_e4: int
    decision: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LogEntry).decode


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state a batch was read in (of which opening of the file, after which transaction), and what its events, but
    for the rows that are skipped, make of it. `keys` and `key_of_row` as `window_keys` gives them.
    """

    opening: object
    txn_id: int
    keys: list[bytes]
    key_of_row: Keys
    skipped: list[int]
    advanced: Advance


def window_keys(events: Events) -> tuple[list[bytes], Keys]:
    """The batch's distinct keys, sorted (neighbours share pages); and the key of each of 2n rows: all rows' customers,
    then all rows' terminals.
    """
    customers, terminals = sorted(set(events.customer_ids)), sorted(set(events.terminal_ids))
    customer_number = dict(zip(customers, range(len(customers)), strict=True))
    terminal_number = dict(zip(terminals, range(len(customers), len(customers) + len(terminals)), strict=True))
    rows = [customer_number[name] for name in events.customer_ids]
    rows += [terminal_number[name] for name in events.terminal_ids]
    keys = [b"c" + name.encode() for name in customers] + [b"t" + name.encode() for name in terminals]
    return keys, np.array(rows, np.int32)


def stored_decisions(txn: lmdb.Transaction[Any], transaction_ids: Sequence[str]) -> list[Stored]:
    """The rows that were decided earlier, with their decisions; `transaction_ids` are distinct."""
    numbers = [txn.get(_DECISION + name.encode()) for name in transaction_ids]
    return [
        Stored(row, _decode(txn.get(_LOG + bytes(number), b"")).decision)
        for row, number in enumerate(numbers)
        if number is not None
    ]


def advance_windows(
    txn: lmdb.Transaction[Any], keys: list[bytes], key_of_row: Keys, events: Events, skipped: Sequence[int]
) -> Advance:
    """Both windows of every row. Rows decided earlier were entered then: they are moved to a key of their own."""
    states = [txn.get(key) for key in keys]  # with views of the pages, twice as fast as getmulti
    if skipped:
        n = len(events.transaction_ids)
        key_of_row = key_of_row.copy()
        key_of_row[[*skipped, *(row + n for row in skipped)]] = len(states)
        states.append(None)
    event_s = np.concatenate((events.event_s, events.event_s))
    amount_e4 = np.concatenate((events.amount_e4, events.amount_e4))
    return advance(states, key_of_row, event_s, amount_e4)


def put_batch(
    txn: lmdb.Transaction[Any],
    events: Events,
    decisions: Sequence[bytes | None],
    keys: list[bytes],
    advanced: Advance,
    now_us: int,
) -> None:
    """Records the rows that have a decision, and the keys' new windows. Raises KeyError if one was decided
    already: the transaction must not be committed then.
    """
    columns = (events.transaction_ids, events.customer_ids, events.terminal_ids,
               events.event_s.tolist(), events.amount_e4.tolist(), decisions)  # fmt: skip
    entries = [entry for entry in zip(*columns, strict=True) if entry[5] is not None]
    with txn.cursor() as cursor:
        first = max(now_us, _last_number(cursor) + 1)
        numbers = [number.to_bytes(8, "big") for number in range(first, first + len(entries))]
        log = [(_LOG + number, _encode(entry)) for number, entry in zip(numbers, entries, strict=True)]
        _, num_logged = cursor.putmulti(log, append=True)
        index = [(_DECISION + entry[0].encode(), number) for number, entry in zip(numbers, entries, strict=True)]
        _, num_indexed = cursor.putmulti(index, overwrite=False)
        if num_logged != len(entries) or num_indexed != len(entries):
            raise KeyError(f"of {len(entries)} transactions, {num_indexed} are new and {num_logged} could be logged")
        # The skipped rows' own key is the last one, without a name; one whose only rows they are may have no state.
        states = [item for item in zip(keys, advanced.new_states(), strict=False) if item[1]]
        cursor.putmulti(states)


def log_entries(txn: lmdb.Transaction[Any], after: int = 0) -> Iterator[tuple[int, LogEntry]]:
    """Sequence number and entry of everything that was recorded after number `after`, oldest first."""
    with txn.cursor() as cursor:
        if cursor.set_range(_log_key(after + 1)):
            for key, value in cursor.iternext():
                yield int.from_bytes(key[1:], "big"), _decode(value)


def trim(txn: lmdb.Transaction[Any], max_entries: int, before: int | None = None) -> int:
    """Forgets the oldest decisions (those with numbers below `before`), at most `max_entries`; gives how many.

    The windows keep what they counted.
    """
    oldest: list[tuple[int, LogEntry]] = []
    for number, entry in log_entries(txn):
        if len(oldest) == max_entries or (before is not None and number >= before):
            break
        oldest.append((number, entry))
    for number, entry in oldest:
        txn.delete(_log_key(number))
        txn.delete(_DECISION + entry.transaction_id.encode())
    return len(oldest)


def _log_key(number: int) -> bytes:
    return _LOG + number.to_bytes(8, "big")


def _last_number(cursor: lmdb.Cursor[Any]) -> int:
    """Of the newest log entry; 0 where there is none."""
    if not cursor.last() or cursor.key()[:1] != _LOG:
        return 0
    return int.from_bytes(cursor.key()[1:], "big")
