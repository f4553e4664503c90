"""The fraud pipeline over gRPC: values to and from the messages of `headroom.fraud.v1`.

In: transactions, or a reply. Out: serialised messages, or decisions and item errors. Called through the operations at
the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from headroom_client._proto import fraud_pb2
from headroom_client.fraud import Decision, DecisionName, ItemError, Reason, Transaction
from headroom_client.wire.operation import Operation, Reply

_SERVICE = "/headroom.fraud.v1.FraudService"
_DECISIONS: dict[int, DecisionName] = {
    fraud_pb2.DECISION_KIND_APPROVE: "approve",
    fraud_pb2.DECISION_KIND_REVIEW: "review",
    fraud_pb2.DECISION_KIND_DECLINE: "decline",
}


def _message(transaction: Transaction) -> fraud_pb2.Transaction:
    return fraud_pb2.Transaction(
        transaction_id=transaction.transaction_id,
        customer_id=transaction.customer_id,
        terminal_id=transaction.terminal_id,
        amount=transaction.amount,
        timestamp=transaction.timestamp_s,
        currency=transaction.currency,
        merchant_category=transaction.merchant_category,
        channel=transaction.channel,
        latitude=transaction.latitude,
        longitude=transaction.longitude,
    )


def _encode(transaction: Transaction) -> bytes:
    return fraud_pb2.ScoreRequest(transaction=_message(transaction)).SerializeToString()


def _encode_batch(transactions: Sequence[Transaction]) -> bytes:
    messages = [_message(transaction) for transaction in transactions]
    return fraud_pb2.ScoreBatchRequest(transactions=messages).SerializeToString()


def _decision(message: fraud_pb2.ScoreResponse, reply: Reply) -> Decision:
    return Decision(
        transaction_id=message.transaction_id,
        fraud_probability=message.fraud_probability,
        decision=_DECISIONS[message.decision],
        risk_level=message.risk_level,
        scores=dict(message.scores),
        reasons=tuple(Reason(r.feature, r.value, r.contribution, r.text) for r in message.reasons),
        degraded=tuple(message.degraded),
        model_version=message.model_version,
        server_timing=reply.server_timing,
        request_id=reply.request_id,
        unexplained=message.unexplained,
        cold_start=tuple(message.cold_start),
    )


def _result(message: fraud_pb2.ScoreResult, reply: Reply) -> Decision | ItemError:
    match message.WhichOneof("result"):
        case "response":
            return _decision(message.response, reply)
        case "error":
            error = message.error
            return ItemError(error.kind, error.message, message.transaction_id or None, error.field or None)
        case _:
            raise ValueError("a result has neither a response nor an error")


def _decode(reply: Reply) -> Decision:
    return _decision(fraud_pb2.ScoreResponse.FromString(reply.body), reply)


def _decode_batch(reply: Reply) -> list[Decision | ItemError]:
    return [_result(result, reply) for result in fraud_pb2.ScoreBatchResponse.FromString(reply.body).results]


def _decode_item(reply: Reply) -> Decision | ItemError:
    return _result(fraud_pb2.ScoreResult.FromString(reply.body), reply)


SCORE: Operation[Transaction, Decision] = Operation(f"{_SERVICE}/Score", _encode, _decode)
SCORE_BATCH: Operation[Sequence[Transaction], list[Decision | ItemError]] = Operation(
    f"{_SERVICE}/ScoreBatch", _encode_batch, _decode_batch
)
SCORE_STREAM: Operation[Transaction, Decision | ItemError] = Operation(f"{_SERVICE}/ScoreStream", _encode, _decode_item)
