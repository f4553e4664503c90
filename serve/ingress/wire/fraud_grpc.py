"""Fraud over gRPC (`headroom.fraud.v1`): messages to transactions, decisions to messages, in the runner's thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from serve.batching.arrival import Decoded, Encoded
from serve.batching.outcome import Outcome
from serve.errors import HeadroomError, InvalidInput
from serve.ingress.wire.fraud_http import MAX_TRANSACTIONS
from serve.ingress.wire.json_errors import explain, placed
from serve.pipelines.fraud.contract import RULES, Decision, Transaction

SERVICE = "headroom.fraud.v1.FraudService"
UNARY_METHODS = ("Score", "ScoreBatch", "GetDecision", "LabelTransactions", "EraseCustomer")
_OPTIONAL = ("currency", "merchant_category", "channel", "latitude", "longitude")
_KINDS: Mapping[str, pb.DecisionKind] = {
    "approve": pb.DECISION_KIND_APPROVE,
    "review": pb.DECISION_KIND_REVIEW,
    "decline": pb.DECISION_KIND_DECLINE,
}


class _Codec:
    """What the methods share."""

    def timeout_us(self, payload: bytes) -> int | None:
        """The message carries none; gRPC's own deadline does."""
        return None


class ScoreCodec(_Codec):
    """`FraudService/Score`."""

    endpoint = "FraudService/Score"

    def count_items(self, payload: bytes) -> int:
        """One."""
        return 1

    def decode(self, payload: bytes) -> Decoded:
        """One transaction; raises InvalidInput naming the field."""
        message = _parse(pb.ScoreRequest, payload)
        return Decoded((_transaction(message.transaction, "transaction"),), message.transaction.transaction_id)

    def encode(self, request: str, outcomes: Sequence[Outcome[Decision]]) -> Encoded:
        """A ScoreResponse; raises the item's error."""
        outcome = outcomes[0]
        if isinstance(outcome, HeadroomError):
            raise placed(outcome, "transaction")
        return _encoded(response(outcome))


class ScoreStreamCodec(ScoreCodec):
    """One message of `FraudService/ScoreStream`."""

    endpoint = "FraudService/ScoreStream"

    def encode(self, request: str, outcomes: Sequence[Outcome[Decision]]) -> Encoded:
        """A ScoreResult with the decision or the item's error."""
        return _encoded(_result(outcomes[0], request, "transaction"))

    def encode_error(self, payload: bytes, error: HeadroomError) -> Encoded:
        """A ScoreResult with the error."""
        return _encoded(_result(error, _transaction_id(payload), "transaction"))


class ScoreBatchCodec(_Codec):
    """`FraudService/ScoreBatch`: each item its own result or error."""

    endpoint = "FraudService/ScoreBatch"

    def count_items(self, payload: bytes) -> int:
        """Estimated from the size: the least a transaction of useful ids takes is 40 bytes, a usual one 60."""
        return min(max(1, len(payload) // 60), MAX_TRANSACTIONS)

    def decode(self, payload: bytes) -> Decoded:
        """The transactions, bad ones as errors; raises InvalidInput when there are none or too many."""
        messages = _parse(pb.ScoreBatchRequest, payload).transactions
        if not 1 <= len(messages) <= MAX_TRANSACTIONS:
            raise InvalidInput(
                f"transactions has {len(messages)} items; allowed 1 to {MAX_TRANSACTIONS}", field="transactions"
            )
        outcomes = [_outcome(message, f"transactions[{i}]") for i, message in enumerate(messages)]
        return Decoded(outcomes, [message.transaction_id for message in messages])

    def encode(self, request: Sequence[str], outcomes: Sequence[Outcome[Decision]]) -> Encoded:
        """A ScoreBatchResponse in the order of the request."""
        results = [
            _result(one, transaction_id, f"transactions[{i}]")
            for i, (one, transaction_id) in enumerate(zip(outcomes, request, strict=True))
        ]
        return _encoded(pb.ScoreBatchResponse(results=results))


def _parse(kind: Any, payload: bytes) -> Any:
    try:
        return kind.FromString(payload)
    except DecodeError:
        raise InvalidInput(f"the message is not a valid {kind.DESCRIPTOR.full_name}") from None


def _transaction(message: Any, base: str) -> Transaction:
    fields = {
        "transaction_id": message.transaction_id,
        "customer_id": message.customer_id,
        "terminal_id": message.terminal_id,
        "amount": message.amount,
        "timestamp": message.timestamp,
    }
    for name in _OPTIONAL:
        if message.HasField(name):
            fields[name] = getattr(message, name)
    try:
        return msgspec.convert(fields, Transaction)
    except msgspec.ValidationError as error:
        raise explain(error, msgspec.json.encode(fields), rules=RULES, base=base) from None


def _outcome(message: Any, base: str) -> Outcome[Transaction]:
    try:
        return _transaction(message, base)
    except InvalidInput as error:
        return error


def _transaction_id(payload: bytes) -> str:
    try:
        return str(pb.ScoreRequest.FromString(payload).transaction.transaction_id)
    except DecodeError:
        return ""


def response(decision: Decision) -> Any:
    """The ScoreResponse of a decision."""
    message = pb.ScoreResponse(
        transaction_id=decision.transaction_id,
        fraud_probability=decision.fraud_probability,
        decision=_KINDS[decision.decision],
        risk_level=decision.risk_level,
        scores=decision.scores,
        degraded=decision.degraded,
        model_version=decision.model_version,
        unexplained=decision.unexplained,
        cold_start=decision.cold_start,
    )
    for reason in decision.reasons:
        value = float("nan") if reason.value is None else reason.value
        message.reasons.add(feature=reason.feature, value=value, contribution=reason.contribution, text=reason.text)
    return message


def _result(outcome: Outcome[Decision], transaction_id: str, base: str) -> Any:
    if not isinstance(outcome, HeadroomError):
        return pb.ScoreResult(response=response(outcome), transaction_id=transaction_id)
    outcome = placed(outcome, base)
    error = pb.ItemError(kind=outcome.kind, message=outcome.message, field=getattr(outcome, "field", None) or "")
    return pb.ScoreResult(error=error, transaction_id=transaction_id)


def _encoded(message: Any) -> Encoded:
    return Encoded(message.SerializeToString(), "application/grpc")
