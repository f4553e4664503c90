"""The fraud pipeline put together: store, ensemble, policy, flow, and the ways in by every protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from serve.assembly.endpoints import (
    HttpKey,
    Published,
    RouteMaker,
    Service,
    publish,
    unversioned_http,
    unversioned_infer,
)
from serve.assembly.fraud_watch import FraudWatch
from serve.assembly.stores import Store, feast_source, feature_store
from serve.backends.base import Scores
from serve.backends.stacked import StackedModel
from serve.batching.accounts import BatchAccounts
from serve.batching.arrival import Route
from serve.batching.collector import Collector
from serve.batching.runner import Runner
from serve.budgets.ladder import Ladder, Rung
from serve.context import RequestContext
from serve.errors import HeadroomError, NotReady
from serve.features.feast import FeastSource
from serve.features.redis import RedisStore
from serve.features.windows import FEATURES
from serve.ingress.blocking import BlockingWork
from serve.ingress.grpc_fraud import fraud_methods
from serve.ingress.http_fraud import fraud_handlers
from serve.ingress.wire import fraud_grpc, fraud_http
from serve.ingress.wire.fraud_oip import FraudEndpoint
from serve.observability.audit import AuditLog
from serve.observability.drift import Drift, read_reference
from serve.observability.metrics import Metrics
from serve.observability.model_statistics import ModelStatistics
from serve.pipelines.fraud.flow import FraudFlow
from serve.pipelines.fraud.policy import read_policy
from serve.pipelines.fraud.recording import Recording
from serve.pipelines.fraud.records import FraudRecords
from serve.pipelines.fraud.rules import Rules
from serve.pipelines.fraud.stages import Policy, Rows
from serve.pipelines.fraud.watching import Watch
from serve.repository.repository import Repository
from serve.settings import (
    FRAUD_STAGES,
    FraudSettings,
    FraudTunables,
    RuleTunables,
    Settings,
    SettingsError,
    audit_log_path,
)

log = logging.getLogger(__name__)

MODEL = "fraud_ensemble"
_RUNG_SHARES = {"reasons": 0.7, "features": 0.4}
"""Of the full time, until measured."""
_DEFAULT_STAGE_MS = 5.0


class EnsembleScorer:
    """Implements the flow's `Scorer` on a stacked model. Thread-safe."""

    def __init__(self, model: StackedModel) -> None:
        self.version = f"{model.spec.name}:{model.spec.version}"
        self.member_names = model.member_names
        self._model = model

    def score(self, rows: Rows) -> Scores:
        """Of `rows`, float32 [n, F]."""
        return self._model.score(rows)

    def contributions(self, rows: Rows) -> Rows:
        """To the log-odds, float32 [n, F + 1]."""
        return self._model.contributions(rows)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the pipeline is made of beside its service."""

    flow: FraudFlow
    store: Store
    source: FeastSource | None
    collector: Collector
    watch: FraudWatch
    audit: AuditLog
    blocking: BlockingWork


class FraudPipeline:
    """The pipeline's service and what may be changed or looked at while it runs."""

    def __init__(self, service: Service, parts: _Parts, metrics: Metrics, max_batch_items: int) -> None:
        self.service = service
        self._parts = parts
        self._metrics = metrics
        self._max_batch_items = max_batch_items
        self._policy = parts.flow.policy

    def tune(self, tunables: FraudTunables) -> None:
        """Applies thresholds, rules and batching; what is unset goes back to the model's or the published value.

        Raises SettingsError when reviews would begin above declines.
        """
        review_at = self._policy.review_at if tunables.review_at is None else tunables.review_at
        decline_at = self._policy.decline_at if tunables.decline_at is None else tunables.decline_at
        if review_at > decline_at:
            raise SettingsError(f"user_config.fraud.review_at is {review_at}; allowed: up to decline_at, {decline_at}")
        parts = self._parts
        parts.flow.policy = replace(self._policy, review_at=review_at, decline_at=decline_at)
        parts.flow.rules = _rules(tunables.rules)
        parts.watch.tune(parts.flow, calibrates=tunables.calibrate)
        parts.collector.share = tunables.wait_share
        self.service.runner.max_batch_items = tunables.max_batch_items or self._max_batch_items

    def check(self) -> None:
        """Looks after the store."""
        store = self._parts.store
        store.check()
        self._metrics.set_store_state("bytes_used", store.bytes_used())

    def close(self) -> None:
        """Ends what runs beside the flow, and the store after its last commit."""
        self._parts.watch.close()
        self._parts.blocking.close()
        self._parts.store.close()
        if self._parts.source is not None:
            self._parts.source.close()
        self._parts.audit.close()


def fraud_pipeline(
    settings: Settings, published: FraudSettings, repository: Repository, metrics: Metrics
) -> FraudPipeline:
    """Builds it; raises NotReady with the reason when its model cannot serve."""
    model = _ensemble(repository, published.model_version)
    scorer, policy = EnsembleScorer(model), read_policy(model.directory)
    watch = _watch(repository, published, scorer, policy, model.directory, metrics)
    collector = Collector("fraud", max_items=published.max_queue_items)
    recorder = publish("fraud", Published(published.budget_ms, FRAUD_STAGES, published.stages), metrics)
    audit, blocking = AuditLog(audit_log_path(settings)), BlockingWork("the feature store")
    source, store = feast_source(settings), feature_store(settings, audit.write)
    commit_limit_ns = _stage_ns(published.stages, "decide") + int(settings.features.commit_grace_ms * 1e6)
    flow = FraudFlow(
        Recording(store, metrics, commit_limit_ns=commit_limit_ns), scorer, policy, watch.watch,
        rungs=published.ladder, explain_budget_ns=_stage_ns(published.stages, "explain"), rules=Rules(), source=source,
    )  # fmt: skip
    ladder = Ladder((Rung("", 1.0), *(Rung(name, _RUNG_SHARES[name]) for name in published.ladder)))
    runner = Runner(
        collector, flow, ladder, recorder,
        max_batch_items=published.max_batch_items, max_batches_in_flight=published.max_batches_in_flight,
        waits_elsewhere=source is not None or isinstance(store, RedisStore),
        accounts=_accounts(metrics, model),
    )  # fmt: skip
    records = FraudRecords(store, scorer, metrics.fraud(), partial(_asked, audit))
    maker = RouteMaker("fraud", runner, published.budget_ms, recorder)
    endpoint, max_body_bytes = FraudEndpoint(model.spec.version), settings.limits.max_body_bytes
    http, infer = maker.infer(endpoint, max_body_bytes)
    service = Service(
        "fraud", endpoint.spec, runner, unversioned_http("fraud", http) | _http_routes(maker),
        grpc=_grpc_routes(maker),
        grpc_streams={f"/{fraud_grpc.SERVICE}/ScoreStream": maker.route(fraud_grpc.ScoreStreamCodec())},
        grpc_direct=fraud_methods(records, blocking),
        handlers=fraud_handlers(records, blocking, watch.shadow_report, max_body_bytes),
        infer=unversioned_infer(infer), steps=(MODEL,),
        warm_up=lambda: flow.warm_up(published.max_batch_items, partial(ladder.observe, 0)),
    )  # fmt: skip
    parts = _Parts(flow, store, source, collector, watch, audit, blocking)
    return FraudPipeline(service, parts, metrics, published.max_batch_items)


def _accounts(metrics: Metrics, model: StackedModel) -> BatchAccounts:
    """The pipeline's statistics, and its model's."""
    version = model.spec.version
    own = metrics.recorder(ModelStatistics, "fraud", version)
    return BatchAccounts(own, {"score": metrics.recorder(ModelStatistics, MODEL, version)})


def _http_routes(maker: RouteMaker) -> dict[HttpKey, Route]:
    return {
        (b"POST", b"/v1/fraud/score"): maker.route(fraud_http.ScoreCodec()),
        (b"POST", b"/v1/fraud/score:batch"): maker.route(fraud_http.ScoreBatchCodec()),
    }


def _grpc_routes(maker: RouteMaker) -> dict[str, Route]:
    return {
        f"/{fraud_grpc.SERVICE}/Score": maker.route(fraud_grpc.ScoreCodec()),
        f"/{fraud_grpc.SERVICE}/ScoreBatch": maker.route(fraud_grpc.ScoreBatchCodec()),
    }


def _watch(
    repository: Repository,
    published: FraudSettings,
    scorer: EnsembleScorer,
    policy: Policy,
    directory: Path,
    metrics: Metrics,
) -> FraudWatch:
    shadow, reference = _shadow(repository, published.shadow_version), read_reference(directory, FEATURES)
    drift = Drift(reference, FEATURES)
    watch = Watch(scorer.version, drift, shadow, policy, metrics.fraud(), reference.score)
    return FraudWatch(watch, scorer, shadow, metrics)


def _shadow(repository: Repository, version: str) -> EnsembleScorer | None:
    """The version in shadow; one that cannot serve must not take the one that serves with it."""
    if not version:
        return None
    try:
        model = _ensemble(repository, version)
        read_policy(model.directory)  # says whether it was trained on these features
    except HeadroomError as error:
        log.error("no version %s of %s in shadow: %s", version, MODEL, error.message)
        return None
    return EnsembleScorer(model)


def _ensemble(repository: Repository, version: str) -> StackedModel:
    model = repository.model(MODEL, version)
    if not isinstance(model, StackedModel):
        raise NotReady(f"model {MODEL} has backend {model.spec.backend}; allowed: stacked")
    return model


def _rules(tunables: RuleTunables) -> Rules:
    return Rules(
        tunables.velocity, tunables.distance_km, tunables.speed_km_per_h, tunables.amount, tunables.new_terminal_amount
    )


def _asked(audit: AuditLog, event: str, context: RequestContext, details: Mapping[str, object]) -> None:
    who = {"request_id": context.request_id, "tenant": context.tenant, "principal": context.principal}
    audit.write(event, {**who, **details})


def _stage_ns(stages: dict[str, float], stage: str) -> int:
    return int(stages.get(stage, _DEFAULT_STAGE_MS) * 1e6)
