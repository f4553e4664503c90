"""Fraud over HTTP: JSON bodies to transactions, decisions to JSON. `score` takes one, `score:batch` many.

Hot: about 2 µs a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from serve.batching.arrival import Decoded, Encoded
from serve.batching.outcome import Outcome
from serve.errors import HeadroomError, InvalidInput
from serve.ingress.http_request import HttpRequest
from serve.ingress.wire.json_errors import Undecodable, explain, placed
from serve.pipelines.fraud.contract import RULES, Decision, Transaction

MAX_TRANSACTIONS = 1024
_BATCH_RULES = {"transactions": f"a list of 1 to {MAX_TRANSACTIONS} transactions"}
_decode_one = msgspec.json.Decoder(Transaction).decode
_encode = msgspec.json.Encoder().encode


class _Many(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    transactions: list[Transaction]


class _RawMany(msgspec.Struct, forbid_unknown_fields=True):
    transactions: list[msgspec.Raw]


class ItemError(msgspec.Struct, omit_defaults=True):
    """An item's error inside a batch's answer."""

    kind: str
    message: str
    field: str | None = None


class FailedItem(msgspec.Struct):
    """What stands in `results` for an item that has no decision."""

    error: ItemError


_decode_many = msgspec.json.Decoder(_Many).decode
_decode_raw = msgspec.json.Decoder(_RawMany).decode


class ScoreCodec:
    """`POST /v1/fraud/score`."""

    endpoint = "/v1/fraud/score"

    def count_items(self, payload: HttpRequest) -> int:
        """One."""
        return 1

    def timeout_us(self, payload: HttpRequest) -> int | None:
        """The body carries none."""
        return None

    def decode(self, payload: HttpRequest) -> Decoded:
        """One transaction; raises InvalidInput naming the field."""
        try:
            return Decoded((_decode_one(payload.body),))
        except Undecodable as error:
            raise explain(error, payload.body, rules=RULES) from None

    def encode(self, request: None, outcomes: Sequence[Outcome[Decision]]) -> Encoded:
        """The decision; raises the item's error."""
        outcome = outcomes[0]
        if isinstance(outcome, HeadroomError):
            raise outcome
        return Encoded(_encode(outcome))


class ScoreBatchCodec:
    """`POST /v1/fraud/score:batch`: each item its own result or error."""

    endpoint = "/v1/fraud/score:batch"

    def count_items(self, payload: HttpRequest) -> int:
        """Counted by the one key every item must have, which a search finds far faster than a parser."""
        return min(max(1, payload.body.count(b'"transaction_id"')), MAX_TRANSACTIONS)

    def timeout_us(self, payload: HttpRequest) -> int | None:
        """The body carries none."""
        return None

    def decode(self, payload: HttpRequest) -> Decoded:
        """The transactions, bad ones as errors; raises InvalidInput when the list itself is wrong."""
        try:
            transactions: Sequence[Outcome[Transaction]] = _decode_many(payload.body).transactions
        except Undecodable:
            transactions = _decode_each(payload.body)
        if not 1 <= len(transactions) <= MAX_TRANSACTIONS:
            raise InvalidInput(
                f"transactions has {len(transactions)} items; allowed 1 to {MAX_TRANSACTIONS}", field="transactions"
            )
        return Decoded(transactions)

    def encode(self, request: None, outcomes: Sequence[Outcome[Decision]]) -> Encoded:
        """`{"results": […]}` in the order of the request."""
        results = [_failed(one, i) if isinstance(one, HeadroomError) else one for i, one in enumerate(outcomes)]
        return Encoded(_encode({"results": results}))


def _decode_each(body: bytes) -> list[Outcome[Transaction]]:
    try:
        raw = _decode_raw(body).transactions
    except Undecodable as error:
        raise explain(error, body, rules=_BATCH_RULES) from None
    return [_decode_item(item, f"transactions[{i}]") for i, item in enumerate(raw)]


def _decode_item(item: msgspec.Raw, base: str) -> Outcome[Transaction]:
    try:
        return _decode_one(item)
    except Undecodable as error:
        return explain(error, bytes(item), rules=RULES, base=base)


def _failed(error: HeadroomError, index: int) -> FailedItem:
    error = placed(error, f"transactions[{index}]")
    return FailedItem(ItemError(error.kind, error.message, getattr(error, "field", None)))
