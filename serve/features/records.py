"""Hot file: the records of the embedded store, and how a batch reads and writes them inside one transaction.

Takes an open LMDB transaction and a batch's columns; gives windows and earlier decisions, or leaves records. Called by
`serve.features.embedded`. Budget: 25 µs per transaction of a batch of 256, both ways (`benchmarks/feature_store.py`).

All records are in one B-tree, so that one path of pages is written per record, and none has to be created at opening:

    c<customer id>, t<terminal id>   window state of the key (`kernels.windows`)
    x<transaction id>                sequence number of its log entry, 8 bytes
    z<customer id>                   an erasure: log entries of the customer up to this number are not there any more
    {                                there was an erasure that the file is still to be compacted after
    0xff<sequence number, 8 bytes>   log entry: event and decision, in the order of commits (msgpack)

The sequence number is the commit's wall time in microseconds, or one more than the last where that is greater.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from serve.features.batch import CUSTOMER, TERMINAL, WindowKeys, advance_batch, entries_of
from serve.features.store import FRAUD, GENUINE, Events, Labelled, LogEntry, Stored
from serve.features.windows import Advance, mark

if TYPE_CHECKING:
    import lmdb

Txn: TypeAlias = "lmdb.Transaction[Any]"

WINDOWS_BEGIN, WINDOWS_END = b"c", b"u"
"""Bounds of the keys of windows."""
_DECISION = b"x"
_ERASURE, _ERASURES_END = b"z", b"{"
UNCOMPACTED = b"{"
_LOG = b"\xff"


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LogEntry).decode


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state a batch was read in (of which opening of the file, after which transaction), and what its events, but
    for the rows that are skipped, make of it. `keys` and `key_of_row` as `window_keys` gives them.
    """

    opening: object
    txn_id: int
    keys: WindowKeys
    skipped: list[int]
    advanced: Advance


def stored_decisions(txn: Txn, transaction_ids: Sequence[str]) -> list[Stored]:
    """The rows that were decided earlier, with their decisions; `transaction_ids` are distinct."""
    numbers = [txn.get(_DECISION + name.encode()) for name in transaction_ids]
    found = [(row, _entry(txn, bytes(number))) for row, number in enumerate(numbers) if number is not None]
    return [Stored(row, entry.decision) for row, entry in found if entry is not None]


def find(txn: Txn, transaction_id: str) -> tuple[bytes, LogEntry] | None:
    """The transaction's number and entry, unless it is not known or was erased."""
    number = txn.get(_DECISION + transaction_id.encode())
    entry = None if number is None else _entry(txn, bytes(number))
    return None if number is None or entry is None else (bytes(number), entry)


def _entry(txn: Txn, number: bytes) -> LogEntry | None:
    entry = _decode(txn.get(_LOG + number, b""))
    erased = txn.get(_ERASURE + entry.customer_id.encode())
    return entry if erased is None or bytes(erased) < number else None


def advance_windows(txn: Txn, keys: WindowKeys, events: Events, skipped: Sequence[int]) -> Advance:
    """Both windows of every row."""
    states = [txn.get(key) for key in keys.keys]  # with views of the pages, twice as fast as getmulti
    return advance_batch(states, keys, events, skipped)


def put_batch(
    txn: Txn,
    events: Events,
    decisions: Sequence[bytes | None],
    keys: list[bytes],
    advanced: Advance,
    now_us: int,
) -> None:
    """Records the rows that have a decision, and the keys' new windows. Raises KeyError if one was decided
    already: the transaction must not be committed then.
    """
    entries = list(entries_of(events, decisions, advanced))
    with txn.cursor() as cursor:
        first = max(now_us, _last_number(cursor) + 1)
        if _has_erasures(cursor):
            for entry in entries:
                _forget_erased(txn, entry[0])
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


def log_entries(txn: Txn, after: int = 0) -> Iterator[tuple[int, LogEntry]]:
    """Sequence number and entry of everything that was recorded after number `after`, oldest first."""
    with txn.cursor() as cursor:
        if cursor.set_range(_log_key(after + 1)):
            for key, value in cursor.iternext():
                yield int.from_bytes(key[1:], "big"), _decode(value)


def trim(txn: Txn, max_entries: int, before: int | None = None) -> int:
    """Forgets the oldest decisions (those with numbers below `before`), at most `max_entries`; gives how many.

    The windows keep what they counted.
    """
    oldest: list[tuple[int, LogEntry]] = []
    for number, entry in log_entries(txn):
        if len(oldest) == max_entries or (before is not None and number >= before):
            break
        oldest.append((number, entry))
    for number, entry in oldest:
        _forget(txn, _log_key(number)[1:], entry.transaction_id)
    return len(oldest)


def label(txn: Txn, labels: Mapping[str, bool]) -> list[Labelled]:
    """Notes what each transaction was, and marks its terminal's windows where that changes what they count."""
    results: list[Labelled] = []
    for transaction_id, is_fraud in labels.items():
        found = find(txn, transaction_id)
        results.append(Labelled(None if found is None else found[1]))
        if found is not None:
            _label_one(txn, *found, FRAUD if is_fraud else GENUINE)
    return results


def _label_one(txn: Txn, number: bytes, entry: LogEntry, label: int) -> None:
    if entry.label == label:
        return
    txn.put(_LOG + number, _encode(msgspec.structs.replace(entry, label=label)))
    if entry.is_late or FRAUD not in (entry.label, label):
        return
    key = TERMINAL + entry.terminal_id.encode()
    state = txn.get(key)
    if state is not None:
        txn.put(key, mark(bytes(state), entry.event_s, is_fraud=label == FRAUD))


def erase(txn: Txn, customer_id: str) -> None:
    """Makes the customer's entries unreadable, deletes the windows, and leaves the rest to `sweep_erased`."""
    with txn.cursor() as cursor:
        last = _last_number(cursor)  # not the time: a commit that waits for the lock has taken an earlier one
    txn.put(_ERASURE + customer_id.encode(), last.to_bytes(8, "big"))
    txn.delete(CUSTOMER + customer_id.encode())


def erasures(txn: Txn) -> dict[str, bytes]:
    """Customers whose entries are still to be deleted, and up to which number."""
    found: dict[str, bytes] = {}
    with txn.cursor() as cursor:
        if cursor.set_range(_ERASURE):
            for key, number in cursor.iternext():
                if bytes(key) >= _ERASURES_END:
                    break
                found[bytes(key)[1:].decode()] = bytes(number)
    return found


def find_erased(
    txn: Txn, erased: Mapping[str, bytes], after: int, max_entries: int
) -> tuple[list[tuple[bytes, str]], int | None]:
    """Number and id of the entries of erased customers among the next `max_entries` after number `after`, and the
    number to go on after; None at the end of the log.
    """
    last = None
    doomed: list[tuple[bytes, str]] = []
    for visited, (number, entry) in enumerate(log_entries(txn, after)):
        if visited == max_entries:
            return doomed, last
        last = number
        packed = number.to_bytes(8, "big")
        if packed <= erased.get(entry.customer_id, b""):
            doomed.append((packed, entry.transaction_id))
    return doomed, None


def forget(txn: Txn, doomed: Sequence[tuple[bytes, str]]) -> None:
    """Deletes entries, by number and id."""
    for number, transaction_id in doomed:
        _forget(txn, number, transaction_id)


def end_erasures(txn: Txn, erased: Mapping[str, bytes], now_us: int) -> None:
    """Forgets the erasures themselves, those that were not renewed meanwhile, and has the file compacted."""
    for customer_id, number in erased.items():
        key = _ERASURE + customer_id.encode()
        if bytes(txn.get(key, b"")) == number:
            txn.delete(key)
    if txn.get(UNCOMPACTED) is None:
        txn.put(UNCOMPACTED, now_us.to_bytes(8, "big"))


def _has_erasures(cursor: lmdb.Cursor[Any]) -> bool:
    return bool(cursor.set_range(_ERASURE)) and bytes(cursor.key()) < _ERASURES_END


def _forget_erased(txn: Txn, transaction_id: str) -> None:
    """Makes room for a new decision where the one before was erased and not yet deleted."""
    number = txn.get(_DECISION + transaction_id.encode())
    if number is not None and _entry(txn, bytes(number)) is None:
        _forget(txn, bytes(number), transaction_id)


def _forget(txn: Txn, number: bytes, transaction_id: str) -> None:
    """Deletes an entry, and its index unless that leads to a newer one."""
    txn.delete(_LOG + number)
    key = _DECISION + transaction_id.encode()
    if bytes(txn.get(key, b"")) == number:
        txn.delete(key)


def _log_key(number: int) -> bytes:
    return _LOG + number.to_bytes(8, "big")


def _last_number(cursor: lmdb.Cursor[Any]) -> int:
    """Of the newest log entry; 0 where there is none."""
    if not cursor.last() or cursor.key()[:1] != _LOG:
        return 0
    return int.from_bytes(cursor.key()[1:], "big")
