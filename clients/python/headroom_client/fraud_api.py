"""`client.fraud`: the fraud pipeline's methods as a user calls them, the same over HTTP and gRPC.

In: transactions and call options. Out: decisions. Built by the clients, which pass in how a call is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, Unpack, overload

from headroom_client.fraud import Decision, ItemError, Transaction, TransactionFields
from headroom_client.options import CallOptions

Result: TypeAlias = Decision | ItemError


class ScoreFields(TransactionFields, CallOptions):
    """A transaction's fields and the call's options, side by side."""


class Fraud:
    """Scores transactions on the calling thread. Thread-safe."""

    def __init__(
        self,
        score: Callable[[Transaction, CallOptions], Decision],
        score_batch: Callable[[Sequence[Transaction], CallOptions], list[Result]],
    ) -> None:
        self._score = score
        self._score_batch = score_batch

    @overload
    def score(self, transaction: Transaction, /, **options: Unpack[CallOptions]) -> Decision: ...

    @overload
    def score(self, /, **fields: Unpack[ScoreFields]) -> Decision: ...

    def score(self, transaction: Transaction | None = None, /, **fields: Any) -> Decision:
        """Scores one transaction, given as a value or as its fields, beside the CallOptions.

        Safe to repeat: the server answers a transaction_id that it knows with the stored decision. Raises
        HeadroomClientError.
        """
        return self._score(*_transaction_and_options(transaction, fields))

    def score_batch(self, transactions: Sequence[Transaction], **options: Unpack[CallOptions]) -> list[Result]:
        """Scores many in one call; one result each, in their order.

        An item that fails is an ItemError in its place and is not retried. Raises HeadroomClientError where the whole
        call fails.
        """
        return self._score_batch(transactions, options)


class StreamingFraud(Fraud):
    """Fraud with a stream, which only gRPC has."""

    def __init__(
        self,
        score: Callable[[Transaction, CallOptions], Decision],
        score_batch: Callable[[Sequence[Transaction], CallOptions], list[Result]],
        score_stream: Callable[[Iterable[Transaction], CallOptions], Iterator[Result]],
    ) -> None:
        super().__init__(score, score_batch)
        self._score_stream = score_stream

    def score_stream(self, transactions: Iterable[Transaction], **options: Unpack[CallOptions]) -> Iterator[Result]:
        """Scores transactions as they come; results carry transaction_id and may come in another order.

        `transactions` is read on a thread of gRPC's. Without `timeout_ms` the stream has no deadline; it is never
        retried. Closing the iterator cancels it. Raises HeadroomClientError where the whole stream fails.
        """
        return self._score_stream(transactions, options)


class AsyncFraud:
    """Scores transactions on the running event loop; any number of calls may be under way at once."""

    def __init__(
        self,
        score: Callable[[Transaction, CallOptions], Awaitable[Decision]],
        score_batch: Callable[[Sequence[Transaction], CallOptions], Awaitable[list[Result]]],
    ) -> None:
        self._score = score
        self._score_batch = score_batch

    @overload
    async def score(self, transaction: Transaction, /, **options: Unpack[CallOptions]) -> Decision: ...

    @overload
    async def score(self, /, **fields: Unpack[ScoreFields]) -> Decision: ...

    async def score(self, transaction: Transaction | None = None, /, **fields: Any) -> Decision:
        """Fraud.score; cancelling the task cancels the call."""
        return await self._score(*_transaction_and_options(transaction, fields))

    async def score_batch(self, transactions: Sequence[Transaction], **options: Unpack[CallOptions]) -> list[Result]:
        """Fraud.score_batch; cancelling the task cancels the call."""
        return await self._score_batch(transactions, options)


class AsyncStreamingFraud(AsyncFraud):
    """AsyncFraud with a stream, which only gRPC has."""

    def __init__(
        self,
        score: Callable[[Transaction, CallOptions], Awaitable[Decision]],
        score_batch: Callable[[Sequence[Transaction], CallOptions], Awaitable[list[Result]]],
        score_stream: Callable[[AsyncIterable[Transaction], CallOptions], AsyncIterator[Result]],
    ) -> None:
        super().__init__(score, score_batch)
        self._score_stream = score_stream

    def score_stream(
        self, transactions: AsyncIterable[Transaction], **options: Unpack[CallOptions]
    ) -> AsyncIterator[Result]:
        """StreamingFraud.score_stream; `transactions` is read by a task of this event loop."""
        return self._score_stream(transactions, options)


def _transaction_and_options(
    transaction: Transaction | None, fields: dict[str, Any]
) -> tuple[Transaction, CallOptions]:
    options = CallOptions()
    for name in CallOptions.__optional_keys__ & fields.keys():
        options[name] = fields.pop(name)  # type: ignore[literal-required]  # the names are the TypedDict's own
    if transaction is None:
        return Transaction(**fields), options
    if fields:
        raise TypeError(f"score() got a Transaction and also {', '.join(sorted(fields))}; allowed: one or the other")
    return transaction, options
