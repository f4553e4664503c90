"""Locust's users of the fraud pipeline: each scores one transaction after the other over HTTP, without a pause.

    python -m locust -f benchmarks/locustfile.py --headless -u 10 -r 10 -t 30s --host http://127.0.0.1:8000

Run from the project's root. `benchmarks/fraud.py` runs it with 1, 10, 50 and 100 users.
"""

from __future__ import annotations

import itertools
import time
from uuid import uuid4

import gevent
from locust import FastHttpUser, constant, task

from benchmarks.bodies import MARKER, score_json, synthetic

NUM_BODIES = 10_000
_past, _live = synthetic(seed=1, num_live=NUM_BODIES, rate_per_s=1_000, now_s=int(time.time()) - 10)
_bodies = itertools.cycle([body.decode() for body in score_json(_live, f"locust-{uuid4().hex[:8]}-")])
_numbers = itertools.count()
# gevent reckons timers from its loop's last turn, which was before these imports: Locust's run time would be shorter.
gevent.get_hub().loop.update_now()


class FraudUser(FastHttpUser):
    """A payment service that waits for each decision."""

    wait_time = constant(0)

    @task
    def score(self) -> None:
        """A transaction nobody has sent before."""
        body = next(_bodies).replace(MARKER, f"{next(_numbers):012d}")
        self.client.post("/v1/fraud/score", data=body, headers={"content-type": "application/json"})
