"""The feature store on Redis: the same windows and decisions as the embedded one, shared by any number of nodes.

Batches of events enter; windows and earlier decisions leave. A batch is read in one round trip (MGET) and recorded by
one script, which does nothing where another process was faster: then the batch is read and advanced anew.

    {headroom}:c:<customer>, {headroom}:t:<terminal>   window state (`kernels.windows`)
    {headroom}:x:<transaction>                         event and decision (msgpack)
    {headroom}:i:<customer>                            ids of the customer's transactions, to erase them by
    {headroom}:n, {headroom}:e                         the number of the last batch; since when something was erased

Retention is Redis's: decisions and windows expire. How much outlives a crash of Redis is its own configuration
(appendonly); what is erased leaves its disk with the next rewrite of its files, which is asked for here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from serve.features.batch import WindowKeys, advance_batch, entries_of, window_keys
from serve.features.redis_connection import Address, Lazily, connect
from serve.features.redis_scripts import ERASE, LABEL, NUMBER_BYTES, RECORD
from serve.features.retention import IDLE_S, Audit
from serve.features.store import (
    FRAUD,
    GENUINE,
    Events,
    FailureKind,
    Fetched,
    Labelled,
    LogEntry,
    Stored,
    StoreFailed,
)
from serve.features.windows import Advance, mark
from serve.features.writer import Housekeeper, Writer

log = logging.getLogger(__name__)

T = TypeVar("T")

_PREFIX = "{headroom}:"
_COUNTER, _ERASED = _PREFIX + "n", _PREFIX + "e"
_MAX_TRIES = 16
"""Of recording a batch that others keep overtaking."""
_ROW_MS = 0.02
"""What a row may add to the time a call may take."""
_MAX_ROWS = 1024
_ERASED_AT_ONCE = 1000
_DONE = 0
_NONE = b""

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(LogEntry)


def _decode(value: bytes) -> LogEntry:
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError:
        raise StoreFailed("damaged", "Redis holds a decision that cannot be read") from None


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a batch was read as: its keys, the number each state had, the rows decided before, and what comes next."""

    keys: WindowKeys
    numbers: list[bytes]
    skipped: list[int]
    advanced: Advance


class RedisStore:
    """Implements `FeatureStore`. Connects when it is first used, and again after a failure.

    A call may take `timeout_ms`, and a little for every row. Decisions are kept for `max_age_s`.
    """

    def __init__(
        self, address: Address, *, timeout_ms: float, max_age_s: float, compact_after_s: float = 86_400,
        housekeeping_s: float = 1.0, wall_clock_s: Callable[[], float] = time.time,
        on_audit: Audit = lambda event, details: None,
    ) -> None:  # fmt: skip
        self.address = address
        self._timeout_ms = timeout_ms
        self._max_age_ms, self._idle_ms = int(max_age_s * 1e3), IDLE_S * 1000
        self._compact_after_s = compact_after_s
        self._wall_clock_s = wall_clock_s
        self._on_audit = on_audit
        self._client = Lazily(lambda: connect(address, (timeout_ms + _MAX_ROWS * _ROW_MS) / 1e3))
        self._scripts: dict[str, Any] = {}
        self._bytes_used = 0
        self._is_closed = False
        self._has_said_so = False
        self._writer = Writer()
        self._housekeeper = Housekeeper(self._look_after, every_s=housekeeping_s)

    def fetch(self, events: Events) -> Fetched:
        """Decisions and the states of the batch's customers and terminals, in one round trip."""
        began_ns = time.monotonic_ns()
        stored, snapshot = self._read(events, window_keys(events))
        took_ms = (time.monotonic_ns() - began_ns) / 1e6
        if took_ms > self._timeout_ms + len(events.transaction_ids) * _ROW_MS:
            raise StoreFailed("late", f"{self.address.shown} took {took_ms:.1f} ms")
        n, windows = len(events.transaction_ids), snapshot.advanced.windows
        return Fetched(stored, windows.rows(0, n), windows.rows(n, 2 * n), snapshot)

    def commit(
        self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched, deadline_ns: int
    ) -> list[Stored]:
        """Has the writer record the batch; raises StoreFailed "late" at the deadline, and "busy" until it is done."""
        snapshot = fetched.snapshot
        assert isinstance(snapshot, _Snapshot)
        return self._writer.run(lambda: self._commit(events, decisions, snapshot, deadline_ns), deadline_ns)

    def find(self, transaction_id: str) -> LogEntry | None:
        """The transaction's event and decision. Raises StoreFailed."""
        found = self._call(lambda: self._client().get(_decision(transaction_id)))
        return None if found is None else _decode(found[NUMBER_BYTES:])

    def label(self, labels: Mapping[str, bool]) -> list[Labelled]:
        """Notes labels, each in a transaction of its own. Raises StoreFailed when the first fails; after a later failure
        the rest has failed too, and can be given again.
        """
        results: list[Labelled] = []
        for name, is_fraud in labels.items():
            try:
                results.append(self._label_one(name, FRAUD if is_fraud else GENUINE))
            except StoreFailed as failure:
                if not results:
                    raise
                log.warning("%d of %d labels were noted: %s", len(results), len(labels), failure)
                break
        return results + [Labelled(None, has_failed=True)] * (len(labels) - len(results))

    def erase(self, customer_id: str) -> None:
        """Deletes everything about a customer. Raises StoreFailed."""
        keys = [_index(customer_id), f"{_PREFIX}c:{customer_id}", _ERASED]
        arguments = [f"{_PREFIX}x:", int(self._wall_clock_s() * 1e3), _ERASED_AT_ONCE]
        while self._call(lambda: self._run(ERASE, keys, arguments)):
            continue

    def read_log(self, after: int = 0) -> list[tuple[int, LogEntry]]:
        """Number and entry of everything recorded after number `after`, oldest first. Raises StoreFailed; slow."""
        names = self._call(lambda: list(self._client().scan_iter(f"{_PREFIX}x:*", count=1000)))
        found: list[tuple[int, LogEntry]] = []
        for begin in range(0, len(names), _MAX_ROWS):
            for value in self._call(partial(self._client().mget, names[begin : begin + _MAX_ROWS])):
                if value is not None and int(value[:NUMBER_BYTES], 16) > after:
                    found.append((int(value[:NUMBER_BYTES], 16), _decode(value[NUMBER_BYTES:])))
        return sorted(found, key=lambda numbered: numbered[0])

    def check(self) -> None:
        """Nothing to open anew: every call finds out for itself."""

    def close(self) -> None:
        """Ends both threads and the connections."""
        self._housekeeper.close()
        self._writer.close()
        self._is_closed = True
        self._client.close()

    def bytes_used(self) -> int:
        """Of Redis's memory, everything in it, as of the last second; 0 where that is not known."""
        return self._bytes_used

    def _read(self, events: Events, keys: WindowKeys, unwanted: Collection[int] = ()) -> tuple[list[Stored], _Snapshot]:
        """What is known of the batch; rows that are `unwanted` are not entered, as those decided before are not."""
        n = len(events.transaction_ids)
        names = [_decision(name) for name in events.transaction_ids]
        names += [f"{_PREFIX}{chr(key[0])}:{key[1:].decode()}" for key in keys.keys]
        values = self._call(lambda: self._client().mget(names))
        stored = [Stored(row, _decode(v[NUMBER_BYTES:]).decision) for row, v in enumerate(values[:n]) if v is not None]
        skipped = sorted({*unwanted, *(one.row for one in stored)})
        states = [None if value is None else memoryview(value)[NUMBER_BYTES:] for value in values[n:]]
        numbers = [_NONE if value is None else value[:NUMBER_BYTES] for value in values[n:]]
        return stored, _Snapshot(keys, numbers, skipped, advance_batch(states, keys, events, skipped))

    def _commit(
        self, events: Events, decisions: Sequence[bytes | None], snapshot: _Snapshot, deadline_ns: int
    ) -> list[Stored]:
        """Records what nobody has; gives the rows that somebody decided since they were read."""
        meanwhile: dict[int, Stored] = {}
        unwanted = [row for row, decision in enumerate(decisions) if decision is None]
        if not set(unwanted) <= set(snapshot.skipped):
            _, snapshot = self._read(events, snapshot.keys, unwanted)
        for _ in range(_MAX_TRIES):
            decided = set(snapshot.skipped)
            to_record = [None if row in decided else one for row, one in enumerate(decisions)]
            if not any(to_record):
                return list(meanwhile.values())
            if self._record_once(events, to_record, snapshot) == _DONE:
                return list(meanwhile.values())
            if time.monotonic_ns() > deadline_ns:
                break
            stored, snapshot = self._read(events, snapshot.keys, unwanted)
            meanwhile = {one.row: one for one in stored if decisions[one.row] is not None}
        raise StoreFailed("late", "other processes were faster every time")

    def _record_once(self, events: Events, decisions: list[bytes | None], snapshot: _Snapshot) -> int:
        entries = list(entries_of(events, decisions, snapshot.advanced))
        states = [
            (key, number, state)
            for key, number, state in zip(
                snapshot.keys.keys, snapshot.numbers, snapshot.advanced.new_states(), strict=False
            )
            if state
        ]
        keys = [_COUNTER, *(_decision(transaction_id) for transaction_id, *_ in entries)]
        keys += [_index(customer_id) for _, customer_id, *_ in entries]
        keys += [f"{_PREFIX}{chr(key[0])}:{key[1:].decode()}" for key, _, _ in states]
        arguments: list[Any] = [len(entries), len(states), self._max_age_ms, self._idle_ms]
        for entry in entries:
            arguments += (entry[0], _encode(entry))
        arguments.append(int(self._wall_clock_s() * 1e3))
        for _, number, state in states:
            arguments += (number, state)
        return int(self._call(lambda: self._run(RECORD, keys, arguments)))

    def _label_one(self, transaction_id: str, label: int) -> Labelled:
        for _ in range(_MAX_TRIES):
            value = self._call(lambda: self._client().get(_decision(transaction_id)))
            if value is None:
                return Labelled(None)
            entry = _decode(value[NUMBER_BYTES:])
            if entry.label == label or self._note(entry, value, label):
                return Labelled(entry)
        raise StoreFailed("late", "other processes were faster every time")

    def _note(self, entry: LogEntry, value: bytes, label: int) -> bool:
        """Writes a label and, where it changes what the terminal's windows count, those; whether nothing had changed."""
        terminal = f"{_PREFIX}t:{entry.terminal_id}"
        state_number, marked = _NONE, _NONE
        if FRAUD in (entry.label, label) and not entry.is_late:
            state = self._call(lambda: self._client().get(terminal))
            if state is not None:
                state_number = state[:NUMBER_BYTES]
                marked = mark(state[NUMBER_BYTES:], entry.event_s, is_fraud=label == FRAUD)
        changed = value[:NUMBER_BYTES] + _encode(msgspec.structs.replace(entry, label=label))
        keys = [_COUNTER, _decision(entry.transaction_id), terminal]
        return bool(self._call(lambda: self._run(LABEL, keys, [value, changed, state_number, marked])))

    def _look_after(self) -> None:
        """Once a second: how full it is, and whether what was erased should leave the disk."""
        info = self._call(lambda: self._client().info("memory", **self._owner()))
        self._bytes_used = int(info.get("used_memory", 0))
        since_ms = self._call(lambda: self._client().get(_ERASED))
        if since_ms is None or self._wall_clock_s() - int(since_ms) / 1e3 < self._compact_after_s:
            return
        if self._call(self._rewrite_files) and self._call(lambda: self._client().delete(_ERASED)):
            self._on_audit("compacted", {"store": self.address.shown})

    def _rewrite_files(self) -> bool:
        """Asks Redis for files without what was deleted, of the kinds it keeps; whether it did as asked."""
        import redis

        client, where = self._client(), self._owner()
        try:
            if client.info("persistence", **where).get("aof_enabled"):
                client.bgrewriteaof(**where)
            if any(client.config_get("save", **where).values()):
                client.bgsave(schedule=True, **where)
        except redis.ResponseError as error:
            if not self._has_said_so:
                log.warning("Redis does not rewrite its files on request, so the erased stay in them: %s", error)
            self._has_said_so = True
            return False
        return True

    def _owner(self) -> dict[str, Any]:
        """Whom to ask about all that is stored: of a Cluster, the node that has the hash tag."""
        if self.address.kind != "cluster":
            return {}
        return {"target_nodes": self._client().get_node_from_key(_COUNTER)}

    def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        """Runs a script by its hash, and sends it where Redis has not seen it."""
        if script not in self._scripts:
            self._scripts[script] = self._client().register_script(script)
        return self._scripts[script](keys, arguments)

    def _call(self, work: Callable[[], T]) -> T:
        """What Redis answers; raises StoreFailed saying how it did not."""
        import redis

        if self._is_closed:
            raise StoreFailed("closed", "the store is closed")
        try:
            return work()
        except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
            raise StoreFailed(_kind(error), f"{self.address.shown}: {type(error).__name__}") from None


def _kind(error: Exception) -> FailureKind:
    import redis

    if isinstance(error, redis.TimeoutError):
        return "late"
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return "full"
    return "unavailable" if isinstance(error, redis.ConnectionError) else "error"


def _decision(transaction_id: str) -> str:
    return f"{_PREFIX}x:{transaction_id}"


def _index(customer_id: str) -> str:
    return f"{_PREFIX}i:{customer_id}"
