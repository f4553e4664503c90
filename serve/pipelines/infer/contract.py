from __future__ import annotations
import msgspec
from serve.ingress.wire.oip import InferRequest, InferResponse


class Inferred(msgspec.Struct, frozen=True, gc=False):
    """A request beside its answer: the answer is encoded as the request asked."""

    request: InferRequest
    response: InferResponse
