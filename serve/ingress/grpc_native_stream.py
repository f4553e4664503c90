"""A stream of items on the native transport: each message is an arrival, answered by batches.

Back-pressure: the transport hands over a message only where there is credit for it, and the client's window shrinks with
what waits; no credit is given while answers pile up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from serve.batching.arrival import Answer, Arrival
from serve.errors import HeadroomError
from serve.ingress.grpc_methods import ItemStream

if TYPE_CHECKING:
    from kernels.transport import Call, Transport


class ScoredStream:
    """One call. Answers may leave in another order than their messages arrived; they carry their item's id."""

    def __init__(
        self,
        call: Call,
        transport: Transport,
        kind: ItemStream,
        admit: Callable[[ScoredStream, bytes], None],
        close: Callable[[Call], None],
    ) -> None:
        self._call = call
        self._transport = transport
        self._kind = kind
        self._admit = admit
        self._close = close
        self._lock = threading.Lock()
        self._waiting: dict[int, Arrival] = {}
        self._num_waiting = 0
        self._owed = 0
        """Credit held back while the client does not take its answers."""
        self._is_piled_up = False
        self._has_read_all = False

    def on_message(self, payload: bytes) -> None:
        """A message: waits for its batch."""
        with self._lock:
            self._num_waiting += 1
        try:
            self._admit(self, payload)
        except HeadroomError as error:
            self._send(self._kind.encode_error(payload, error))

    def expect(self, arrival: Arrival) -> None:
        """A message's arrival, before it is pushed."""
        self._waiting[id(arrival)] = arrival

    def deliver(self, answer: Answer) -> bool:
        """One message's answer; from any thread. False where it has been answered, or the call has ended."""
        if self._waiting.pop(id(answer.arrival), None) is None:
            return False
        encoded = answer.encoded
        if encoded is None:
            assert answer.error is not None
            self._send(self._kind.encode_error(answer.arrival.payload, answer.error))
        else:
            self._send(encoded.body)
        return True

    def _send(self, body: bytes) -> None:
        """One message's answer, of however many there are still to come."""
        with self._lock:  # around sending, too: `writable` may come before it has returned
            has_piled_up = self._transport.send(self._call, body)
            self._num_waiting -= 1
            self._is_piled_up = self._is_piled_up or has_piled_up
            if self._is_piled_up:
                self._owed += 1
                granted = 0
            else:
                granted = 1
            is_done = self._has_read_all and self._num_waiting == 0
        if granted:
            self._transport.grant(self._call, granted)
        if is_done:
            self._finish()

    def on_writable(self) -> None:
        """The client has taken what had piled up."""
        with self._lock:
            owed, self._owed, self._is_piled_up = self._owed, 0, False
        self._transport.grant(self._call, owed)

    def on_half_closed(self) -> None:
        """The client sends no more."""
        with self._lock:
            self._has_read_all = True
            is_done = self._num_waiting == 0
        if is_done:
            self._finish()

    def abandon(self) -> list[Arrival]:
        """The call has ended: what nobody waits for any more."""
        found = [self._waiting.pop(key, None) for key in tuple(self._waiting)]
        return [arrival for arrival in found if arrival is not None]

    def _finish(self) -> None:
        self._transport.reply([(self._call, 0, None, "", None)])
        self._close(self._call)
