"""A bidirectional stream of items: messages in become arrivals, answers go out as they come, errors in-band.

Bounded: reading stops while `max_in_flight` messages wait for their answers, so a client that does not read stops being
read from. Belongs to the listener's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from serve.batching.arrival import Answer, Arrival
from serve.errors import HeadroomError
from serve.ingress.grpc_methods import ItemStream

Admit = Callable[[bytes, Any, Any], Arrival]
"""Raises HeadroomError for a message that goes nowhere."""


class ScoreStream:
    """One call. Answers may leave in another order than their messages arrived; they carry their item's id."""

    def __init__(self, kind: ItemStream, call: Any, max_in_flight: int) -> None:
        self._kind = kind
        self._call = call
        self._room = asyncio.Semaphore(max_in_flight)
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._has_read_all = False
        self._waiting: set[Arrival] = set()

    async def run(self, messages: AsyncIterator[bytes], admit: Admit) -> None:
        """Until the client has closed its side and every message is answered, or the call ends."""
        reader = asyncio.ensure_future(self._read(messages, admit))
        try:
            while (message := await self._answers.get()) is not None:
                await self._call.write(message)
                self._room.release()
            await reader
        finally:
            reader.cancel()
            for arrival in self._waiting:
                arrival.context.cancelled = True

    async def _read(self, messages: AsyncIterator[bytes], admit: Admit) -> None:
        try:
            async for payload in messages:
                await self._room.acquire()
                try:
                    self._waiting.add(admit(payload, self._call, self))
                except HeadroomError as error:
                    self._answers.put_nowait(self._kind.encode_error(payload, error))
        finally:
            self._has_read_all = True
            self._end_if_done()

    def deliver(self, answer: Answer) -> None:
        """One message's answer, in the loop's thread."""
        self._waiting.discard(answer.arrival)
        if answer.encoded is None:
            assert answer.error is not None
            self._answers.put_nowait(self._kind.encode_error(answer.arrival.payload, answer.error))
        else:
            self._answers.put_nowait(answer.encoded.body)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._has_read_all and not self._waiting:
            self._answers.put_nowait(None)
