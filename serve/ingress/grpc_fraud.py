"""The fraud service's methods that are not hot: decisions looked up, labels, erasures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from serve.context import RequestContext
from serve.errors import InvalidInput
from serve.ingress.blocking import BlockingWork
from serve.ingress.wire.fraud_grpc import SERVICE
from serve.ingress.wire.fraud_records import checked_id, found_message, labels_of_message, results_message
from serve.pipelines.fraud.records import FraudRecords

Method = Callable[[bytes, RequestContext], Awaitable[bytes]]


def fraud_methods(records: FraudRecords, blocking: BlockingWork) -> Mapping[str, Method]:
    """Methods by full path."""

    def look_up(message: Any, context: RequestContext) -> Any:
        return found_message(records.look_up(checked_id("transaction_id", message.transaction_id)))

    def label(message: Any, context: RequestContext) -> Any:
        return results_message(records.label(labels_of_message(message), context))

    def erase(message: Any, context: RequestContext) -> Any:
        records.erase(checked_id("customer_id", message.customer_id), context)
        return pb.EraseCustomerResponse()

    methods = {
        "GetDecision": (pb.GetDecisionRequest, look_up),
        "LabelTransactions": (pb.LabelTransactionsRequest, label),
        "EraseCustomer": (pb.EraseCustomerRequest, erase),
    }
    return {f"/{SERVICE}/{name}": _method(kind, answer, blocking) for name, (kind, answer) in methods.items()}


def _method(kind: Any, answer: Callable[[Any, RequestContext], Any], blocking: BlockingWork) -> Method:
    async def method(payload: bytes, context: RequestContext) -> bytes:
        try:
            message = kind.FromString(payload)
        except DecodeError:
            raise InvalidInput(f"the message is not a valid {kind.DESCRIPTOR.full_name}") from None
        body: bytes = await blocking.run(context, lambda: answer(message, context).SerializeToString())
        return body

    return method
