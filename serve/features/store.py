"""The seam to a feature store: what the fraud pipeline reads before it scores and records before it answers.

`fetch` and `commit` serve one thread at a time (the pipeline's runner), and `commit` runs in a writer of the store's
own; any thread may call the rest beside them, and waits. Several processes may open the same store: each batch sees
everything that any of them committed before it began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from serve.features.windows import Floats, Ints, Windows

FailureKind = Literal["late", "busy", "full", "damaged", "replaced", "unavailable", "closed", "breaker_open", "error"]


@dataclass(frozen=True, slots=True)
class Events:
    """A batch's transactions as columns, ids unique within it. Times int64 UTC seconds, amounts in ten-thousandths."""

    transaction_ids: Sequence[str]
    customer_ids: Sequence[str]
    terminal_ids: Sequence[str]
    event_s: Ints
    amount_e4: Ints
    place: Floats
    """float64 [n, 2]: latitude and longitude, NaN where they are not known."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A decision that was recorded earlier, as the bytes that were given to `commit`."""

    row: int
    decision: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a store knows before a batch. Rows of `stored` were decided earlier: their windows mean nothing."""

    stored: Sequence[Stored]
    customer: Windows
    terminal: Windows
    snapshot: object
    """The store's own: what `commit` needs to know of the state the batch was read in."""


UNLABELLED, GENUINE, FRAUD = -1, 0, 1
"""What is known of a transaction in the end; each takes one byte, so that an entry replaces itself in its place."""


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event and its decision: what a replay needs to rebuild the windows, and a retry to be answered alike."""

    transaction_id: str
    customer_id: str
    terminal_id: str
    event_s: int
    amount_e4: int
    decision: bytes
    place: tuple[float, float] | None = None
    """Latitude and longitude."""
    label: int = UNLABELLED
    is_late: bool = False
    """For its terminal: it was not entered, so that its label counts nothing."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a label met: the entry as it was before, or None where the transaction is not known, or where the store failed
    on the way to it.
    """

    entry: LogEntry | None
    has_failed: bool = False


class FeatureStore(Protocol):
    """Raises `StoreFailed` and nothing else; after one, the caller may go on calling."""

    def fetch(self, events: Events) -> Fetched:
        """Windows of every row's customer and terminal before it, and decisions that exist already."""
        ...

    def commit(
        self, events: Events, decisions: Sequence[bytes | None], fetched: Fetched, deadline_ns: int
    ) -> list[Stored]:
        """Records decisions and enters their events into the windows, in one transaction; None: a row not to record.

        Returns the rows that another process decided in the meantime, with its decision, which stands. Raises
        StoreFailed when it is not done by `deadline_ns`; it may still be done later.
        """
        ...

    def find(self, transaction_id: str) -> LogEntry | None:
        """The transaction's event and decision; None: not known, or forgotten."""
        ...

    def label(self, labels: Mapping[str, bool]) -> list[Labelled]:
        """Notes of each transaction, by id, whether it was fraud, and has its terminal's risk count it; at most 1 024
        of them, in one transaction. A label may be given again, and changed.
        """
        ...

    def erase(self, customer_id: str) -> None:
        """Makes everything about a customer unreadable now; it leaves the disk when the store is next compacted.

        Counts of the terminals stay: they name nobody.
        """
        ...

    def check(self) -> None:
        """Looks whether the store is whole, and opens it anew where it is not. Called about once a second, by any
        thread.
        """
        ...

    def close(self) -> None:
        """Ends the writer after what it has begun."""
        ...


class StoreFailed(Exception):
    """The store could not read or record in time. `event` names how, for metrics:

    late, busy (an earlier late commit is still under way), full, damaged (and set aside), replaced (another file stands
    in its place; opened anew), unavailable (could not be opened), closed, breaker_open, error (anything else).
    """

    def __init__(self, event: FailureKind, detail: str = "") -> None:
        super().__init__(detail or event)
        self.event: FailureKind = event
