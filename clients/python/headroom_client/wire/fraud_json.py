"""The fraud pipeline over HTTP: values to and from JSON bodies.

In: transactions, or a 200 reply. Out: the body, or decisions and item errors. Called through SCORE and SCORE_BATCH.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, get_args

from headroom_client.fraud import Decision, DecisionName, ItemError, Reason, Transaction
from headroom_client.wire.operation import Operation, Reply

_OPTIONAL = ("currency", "merchant_category", "channel", "latitude", "longitude")
_DECISIONS: dict[str, DecisionName] = {name: name for name in get_args(DecisionName)}


def _body(transaction: Transaction) -> dict[str, str | float]:
    body: dict[str, str | float] = {
        "transaction_id": transaction.transaction_id,
        "customer_id": transaction.customer_id,
        "terminal_id": transaction.terminal_id,
        "amount": transaction.amount,
        "timestamp": transaction.timestamp_s,
    }
    given = ((name, getattr(transaction, name)) for name in _OPTIONAL)
    return body | {name: value for name, value in given if value is not None}


def _encode(transaction: Transaction) -> bytes:
    return json.dumps(_body(transaction)).encode()


def _encode_batch(transactions: Sequence[Transaction]) -> bytes:
    return json.dumps({"transactions": [_body(transaction) for transaction in transactions]}).encode()


def _decision(body: Mapping[str, Any], reply: Reply) -> Decision:
    return Decision(
        transaction_id=body["transaction_id"],
        fraud_probability=float(body["fraud_probability"]),
        decision=_DECISIONS[body["decision"]],
        risk_level=body["risk_level"],
        scores=dict(body["scores"]),
        reasons=tuple(_reason(reason) for reason in body["reasons"]),
        degraded=tuple(body["degraded"]),
        model_version=body["model_version"],
        server_timing=reply.server_timing,
        request_id=reply.request_id,
        unexplained=float(body.get("unexplained", 0.0)),
        cold_start=tuple(body.get("cold_start", ())),
    )


def _reason(body: Mapping[str, Any]) -> Reason:
    value = nan if body["value"] is None else float(body["value"])
    return Reason(body["feature"], value, float(body["contribution"]), body["text"])


def _result(body: Mapping[str, Any], reply: Reply) -> Decision | ItemError:
    if "error" not in body:
        return _decision(body, reply)
    error = body["error"]
    return ItemError(error["kind"], error["message"], body.get("transaction_id"), error.get("field"))


def _decode(reply: Reply) -> Decision:
    return _decision(json.loads(reply.body), reply)


def _decode_batch(reply: Reply) -> list[Decision | ItemError]:
    return [_result(result, reply) for result in json.loads(reply.body)["results"]]


SCORE: Operation[Transaction, Decision] = Operation("/v1/fraud/score", _encode, _decode)
SCORE_BATCH: Operation[Sequence[Transaction], list[Decision | ItemError]] = Operation(
    "/v1/fraud/score:batch", _encode_batch, _decode_batch
)
