"""Decisions after the fact, over HTTP and gRPC: look-ups, labels and erasures to values and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from serve.errors import InvalidInput
from serve.ingress.wire.fraud_grpc import response
from serve.ingress.wire.json_errors import Undecodable, explain
from serve.pipelines.fraud.contract import RULES, Id
from serve.pipelines.fraud.records import MAX_LABELS, Found, Label, LabelResult

_LABEL_RULES = {
    "transaction_id": RULES["transaction_id"],
    "fraud": "true or false",
    "labels": f"a list of 1 to {MAX_LABELS} labels",
}


TRANSACTION_FIELDS = ("customer_id", "terminal_id", "amount", "timestamp", "fraud")
"""Of a `Found`, beside the decision's own."""


class Labels(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/fraud/labels`."""

    labels: Annotated[list[Label], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]


_decode_labels = msgspec.json.Decoder(Labels).decode


def labels_of(body: bytes) -> Sequence[Label]:
    """The labels of a JSON body; raises InvalidInput naming the field."""
    try:
        return _decode_labels(body).labels
    except Undecodable as error:
        raise explain(error, body, rules=_LABEL_RULES) from None


def checked_id(name: str, value: str, base: str = "") -> str:
    """An id out of a path or message; raises InvalidInput naming it."""
    try:
        return msgspec.convert(value, Id)
    except msgspec.ValidationError:
        raise InvalidInput(f"{base}{name} is {value[:100]!r}; allowed: {RULES[name]}", field=base + name) from None


def found_json(found: Found) -> bytes:
    """The decision's fields, and beside them the transaction's."""
    return msgspec.json.encode({**msgspec.structs.asdict(found.decision), "transaction": _transaction(found)})


def _transaction(found: Found) -> dict[str, str | float | bool | None]:
    return {name: getattr(found, name) for name in TRANSACTION_FIELDS}


def found_message(found: Found) -> Any:
    """The GetDecisionResponse."""
    message = pb.GetDecisionResponse(
        decision=response(found.decision), customer_id=found.customer_id, terminal_id=found.terminal_id,
        amount=found.amount, timestamp=found.timestamp,
    )  # fmt: skip
    if found.fraud is not None:
        message.fraud = found.fraud
    return message


def labels_of_message(message: Any) -> Sequence[Label]:
    """The labels of a LabelTransactionsRequest; raises InvalidInput naming the field."""
    if not 1 <= len(message.labels) <= MAX_LABELS:
        raise InvalidInput(f"labels has {len(message.labels)} items; allowed 1 to {MAX_LABELS}", field="labels")
    return [_label(label, f"labels[{i}].") for i, label in enumerate(message.labels)]


def _label(message: Any, base: str) -> Label:
    if not message.HasField("fraud"):
        raise InvalidInput(f"{base}fraud is missing; allowed: {_LABEL_RULES['fraud']}", field=f"{base}fraud")
    return Label(checked_id("transaction_id", message.transaction_id, base), message.fraud)


def results_message(results: Sequence[LabelResult]) -> Any:
    """The LabelTransactionsResponse."""
    return pb.LabelTransactionsResponse(
        results=[pb.LabelResult(transaction_id=one.transaction_id, status=one.status) for one in results]
    )


def results_json(results: Sequence[LabelResult]) -> bytes:
    """`{"results": […]}` in the order of the labels."""
    return msgspec.json.encode({"results": results})
