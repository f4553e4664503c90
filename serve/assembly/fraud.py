"""The fraud pipeline put together: store, model, policy, flow, and the ways in by every protocol."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from serve.assembly.endpoints import Published, RouteMaker, Service, publish
from serve.backends.trees import TreeModel
from serve.batching.collector import Collector
from serve.batching.runner import Runner
from serve.budgets.ladder import Ladder, Rung
from serve.errors import NotReady
from serve.features.embedded import EmbeddedStore
from serve.ingress.wire import fraud_grpc, fraud_http
from serve.ingress.wire.fraud_oip import FraudEndpoint
from serve.observability.metrics import Metrics
from serve.pipelines.fraud.flow import FraudFlow
from serve.pipelines.fraud.policy import read_policy
from serve.pipelines.fraud.stages import Rows
from serve.repository.repository import Repository
from serve.settings import FRAUD_STAGES, FraudTunables, Settings, SettingsError, features_dir

MODEL = "fraud_xgboost"
_RUNG_SHARES = {"reasons": 0.7, "features": 0.4}
"""Of the full time, until measured."""
_DEFAULT_STAGE_MS = 5.0


class TreeScorer:
    """Implements the flow's `Scorer` on a tree model. One thread at a time."""

    def __init__(self, model: TreeModel) -> None:
        self.name = model.spec.name
        self.version = f"{model.spec.name}:{model.spec.version}"
        self._model = model

    def score(self, rows: Rows) -> Rows:
        """Probability of fraud, float32 [n]."""
        out = np.empty(len(rows), np.float32)
        self._model.score_into(rows, out)
        return out

    def contributions(self, rows: Rows) -> Rows:
        """Exact SHAP values, float32 [n, F + 1]."""
        return self._model.contributions(rows)


class FraudPipeline:
    """The pipeline's service and what may be changed or looked at while it runs."""

    def __init__(self, service: Service, flow: FraudFlow, store: EmbeddedStore, collector: Collector,
                 metrics: Metrics, max_batch_items: int) -> None:  # fmt: skip
        self.service = service
        self._flow = flow
        self._store = store
        self._collector = collector
        self._metrics = metrics
        self._max_batch_items = max_batch_items
        self._policy = flow.policy

    def tune(self, tunables: FraudTunables) -> None:
        """Applies thresholds and batching; what is unset goes back to the model's or the published value.

        Raises SettingsError when reviews would begin above declines.
        """
        review_at = self._policy.review_at if tunables.review_at is None else tunables.review_at
        decline_at = self._policy.decline_at if tunables.decline_at is None else tunables.decline_at
        if review_at > decline_at:
            raise SettingsError(f"user_config.fraud.review_at is {review_at}; allowed: up to decline_at, {decline_at}")
        self._flow.policy = replace(self._policy, review_at=review_at, decline_at=decline_at)
        self._collector.share = tunables.wait_share
        self.service.runner.max_batch_items = tunables.max_batch_items or self._max_batch_items

    def check(self) -> None:
        """Looks after the store."""
        self._store.check()
        self._metrics.set_store_state("bytes_used", self._store.bytes_used())

    def close(self) -> None:
        """Ends the store after its last commit."""
        self._store.close()


def fraud_pipeline(settings: Settings, repository: Repository, metrics: Metrics) -> FraudPipeline:
    """Builds it; raises NotReady with the reason when its model cannot serve."""
    published = settings.pipelines["fraud"]
    model = repository.model(MODEL)
    if not isinstance(model, TreeModel):
        raise NotReady(f"model {MODEL} has backend {model.spec.backend}; allowed: fil")
    scorer = TreeScorer(model)
    policy = read_policy(model.directory)
    collector = Collector("fraud", max_items=published.max_queue_items)
    recorder = publish("fraud", Published(published.budget_ms, FRAUD_STAGES, published.stages), metrics)
    store = EmbeddedStore(features_dir(settings), max_bytes=settings.features.max_bytes)
    flow = FraudFlow(
        store, scorer, policy, metrics, rungs=published.ladder,
        explain_budget_ns=_stage_ns(published.stages, "explain"),
        decide_budget_ns=_stage_ns(published.stages, "decide"),
        commit_grace_ns=int(settings.features.commit_grace_ms * 1e6),
    )  # fmt: skip
    rungs = tuple(Rung(name, _RUNG_SHARES[name]) for name in published.ladder)
    ladder = Ladder((Rung("", 1.0), *rungs))
    runner = Runner(
        collector, flow, ladder, recorder,
        max_batch_items=published.max_batch_items, max_batches_in_flight=published.max_batches_in_flight,
    )  # fmt: skip
    maker = RouteMaker("fraud", runner, published.budget_ms, recorder)
    http, infer = maker.infer(FraudEndpoint(model.spec.version), settings.limits.max_body_bytes)
    http[b"POST", b"/v1/fraud/score"] = maker.route(fraud_http.ScoreCodec())
    http[b"POST", b"/v1/fraud/score:batch"] = maker.route(fraud_http.ScoreBatchCodec())
    service = Service(
        "fraud", FraudEndpoint(model.spec.version).spec, runner, http,
        grpc={
            f"/{fraud_grpc.SERVICE}/Score": maker.route(fraud_grpc.ScoreCodec()),
            f"/{fraud_grpc.SERVICE}/ScoreBatch": maker.route(fraud_grpc.ScoreBatchCodec()),
        },
        grpc_streams={f"/{fraud_grpc.SERVICE}/ScoreStream": maker.route(fraud_grpc.ScoreStreamCodec())},
        infer=infer, steps=(MODEL,), warm_up=lambda: flow.warm_up(published.max_batch_items, partial(ladder.observe, 0)),
    )  # fmt: skip
    return FraudPipeline(service, flow, store, collector, metrics, published.max_batch_items)


def _stage_ns(stages: dict[str, float], stage: str) -> int:
    return int(stages.get(stage, _DEFAULT_STAGE_MS) * 1e6)
