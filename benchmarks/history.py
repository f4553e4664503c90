"""Fills a server's windows before it is measured: a history enters, in batches through `POST /v1/fraud/score:batch`.

Used by the fraud benchmarks: an empty store would be faster than one that knows its customers.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.bodies import MARKER, Transactions, score_batch_json
from benchmarks.server import HeadroomServer

BATCH_ITEMS = 128
_MAX_ATTEMPTS = 50
_RETRIED = (429, 503, 504)


@dataclass(frozen=True, slots=True)
class Fed:
    """What it took. `degraded` items were answered without features or without being recorded."""

    transactions: int
    seconds: float
    retries: int
    degraded: int


def feed(server: HeadroomServer, history: Transactions) -> Fed:
    """Sends the whole history in order, refused batches again; raises RuntimeError when one stays refused."""
    began_s = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    retries = degraded = 0
    for number, body in enumerate(_numbered(score_batch_json(history, "history-", BATCH_ITEMS))):
        for attempt in range(_MAX_ATTEMPTS):
            connection.request("POST", "/v1/fraud/score:batch", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 200:
                break
            if answer.status not in _RETRIED or attempt + 1 == _MAX_ATTEMPTS:
                raise RuntimeError(f"batch {number} of the history: {answer.status} {content[:500]!r}")
            retries += 1
            time.sleep(0.01)
        degraded += sum(1 for item in json.loads(content)["results"] if item.get("degraded") or "error" in item)
    return Fed(len(history), round(time.monotonic() - began_s, 1), retries, degraded)


def _numbered(bodies: Iterable[bytes]) -> Iterable[bytes]:
    """Ids of its own for each transaction, as the load generators make them."""
    marker, number = MARKER.encode(), 0
    for body in bodies:
        head, *rest = body.split(marker)
        parts = [head]
        for part in rest:
            parts += [b"%012d" % number, part]
            number += 1
        yield b"".join(parts)
