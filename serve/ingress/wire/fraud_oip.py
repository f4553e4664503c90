"""The fraud pipeline as an OIP model: one tensor per request field, one per answer field, nested values as JSON.

An item's error does not fail the request: `error` holds it, the other outputs of its row are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from serve.backends.base import ModelSpec, Tensor, TensorSpec
from serve.batching.outcome import Outcome
from serve.errors import HeadroomError, InvalidInput
from serve.ingress.wire.fraud_http import MAX_TRANSACTIONS
from serve.ingress.wire.json_errors import explain
from serve.pipelines.fraud.contract import RULES, Decision, Transaction
from serve.pipelines.infer.contract import InferRequest, InferResponse

_TEXT = ("transaction_id", "customer_id", "terminal_id", "currency", "merchant_category", "channel")
_NUMBERS = ("amount", "timestamp", "latitude", "longitude")
_OPTIONAL = frozenset({"currency", "merchant_category", "channel", "latitude", "longitude"})
_ANSWER_NUMBERS = ("fraud_probability", "unexplained")
_ANSWER_TEXT = ("transaction_id", "decision", "risk_level", "model_version")
_ANSWER_JSON = ("scores", "reasons", "degraded", "cold_start")
_encode = msgspec.json.Encoder().encode


def pipeline_spec(version: str) -> ModelSpec:
    """What the pipeline's metadata says: an ensemble, so that standard tools ask for its steps."""
    inputs = [TensorSpec(name, "BYTES", (1,), is_optional=name in _OPTIONAL) for name in _TEXT]
    inputs += [TensorSpec(name, "FP64", (1,), is_optional=name in _OPTIONAL) for name in _NUMBERS]
    outputs = [TensorSpec(name, "FP64", (1,)) for name in _ANSWER_NUMBERS]
    outputs += [TensorSpec(name, "BYTES", (1,)) for name in (*_ANSWER_TEXT, *_ANSWER_JSON, "error")]
    return ModelSpec("fraud", version, "ensemble", "", MAX_TRANSACTIONS, tuple(inputs), tuple(outputs))


class FraudEndpoint:
    """Implements `InferEndpoint`."""

    def __init__(self, version: str) -> None:
        self.spec = pipeline_spec(version)

    def items(self, request: InferRequest) -> Sequence[Outcome[Transaction]]:
        """A transaction per row, bad ones as errors."""
        columns: dict[str, list[Any]] = {}
        for name, tensor in request.inputs.items():
            columns[name] = tensor.reshape(-1).tolist()
        return [_transaction({name: column[row] for name, column in columns.items()}, row)
                for row in range(request.batch_size or 1)]  # fmt: skip

    def response(self, request: InferRequest, outcomes: Sequence[Outcome[Decision]]) -> InferResponse:
        """The answer's columns."""
        outputs: dict[str, Tensor] = {
            name: np.array([[np.nan if isinstance(one, HeadroomError) else getattr(one, name)] for one in outcomes])
            for name in _ANSWER_NUMBERS
        }
        for name in _ANSWER_TEXT:
            outputs[name] = _texts([b"" if isinstance(one, HeadroomError) else getattr(one, name).encode()
                                    for one in outcomes])  # fmt: skip
        for name in _ANSWER_JSON:
            outputs[name] = _texts([b"" if isinstance(one, HeadroomError) else _encode(getattr(one, name))
                                    for one in outcomes])  # fmt: skip
        outputs["error"] = _texts([_error(one) if isinstance(one, HeadroomError) else b"" for one in outcomes])
        return InferResponse(self.spec.name, self.spec.version, outputs)


def _transaction(fields: dict[str, Any], row: int) -> Outcome[Transaction]:
    for name in _TEXT:
        try:
            if name in fields:
                fields[name] = fields[name].decode()
        except UnicodeDecodeError:
            return InvalidInput(f"row {row}.{name} is not UTF-8; allowed: {RULES[name]}", field=f"row {row}.{name}")
    try:
        return msgspec.convert(fields, Transaction)
    except msgspec.ValidationError as error:
        return explain(error, _encode(fields), rules=RULES, base=f"row {row}")


def _error(error: HeadroomError) -> bytes:
    field = error.field if isinstance(error, InvalidInput) else None
    return _encode({"kind": error.kind, "message": error.message, "field": field})


def _texts(values: list[bytes]) -> Tensor:
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column
