"""`Operation`: what one method of the API is on one protocol. `Reply`: what a transport got for it.

Made once per method by the pipelines' wire files; the clients send `encode`'s bytes, the flow calls `parse`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from headroom_client.errors import HeadroomClientError, UnexpectedAnswer
from headroom_client.timing import ServerTiming

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful reply, not yet decoded. `request_id` is the one the server used."""

    body: bytes
    request_id: str
    server_timing: ServerTiming


Outcome: TypeAlias = Reply | HeadroomClientError
"""What a transport made of one try: the server's reply, or why there was none; only the flow raises it."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[Request, Answer]):
    """`path` is the HTTP path or the gRPC method; over HTTP an empty body means GET.

    `decode` may raise KeyError, TypeError, ValueError, AttributeError or DecodeError on a reply of another shape.
    `is_repeatable` is False for a question about this very moment.
    """

    path: str
    encode: Callable[[Request], bytes]
    decode: Callable[[Reply], Answer]
    is_repeatable: bool = True

    def parse(self, reply: Reply) -> Answer:
        """The decoded answer; raises UnexpectedAnswer where the reply has another shape."""
        try:
            return self.decode(reply)
        except (KeyError, TypeError, ValueError, AttributeError, DecodeError) as error:
            raise UnexpectedAnswer(
                f"the answer of {self.path} has another shape than agreed: {error!r}", request_id=reply.request_id
            ) from error
