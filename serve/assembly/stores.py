"""Which feature store the configuration asks for."""

from __future__ import annotations

from serve.errors import NotReady
from serve.features.embedded import EmbeddedStore
from serve.features.feast import FeastSource, FeastView
from serve.features.redis import RedisStore
from serve.features.redis_connection import parse_address
from serve.features.retention import Audit
from serve.features.windows import FEATURES
from serve.settings import Settings, feast_password, features_dir, redis_password

_DAY_S = 86_400

Store = EmbeddedStore | RedisStore


def feast_source(settings: Settings) -> FeastSource | None:
    """What reads Feast's features, where any are asked for; raises NotReady for a feature the model has not."""
    feast = settings.features.feast
    if feast is None:
        return None
    for view in feast.views:
        for name in view.features:
            if name not in FEATURES:
                raise NotReady(f"args.features.feast.views: {name!r} is no feature; allowed {', '.join(FEATURES)}")
    views = [
        FeastView(view.view, view.entity, view.join_key, view.id_type == "int64", view.features) for view in feast.views
    ]
    return FeastSource(parse_address(feast.store, feast_password()), feast.project, views, feast.timeout_ms)


def feature_store(settings: Settings, on_audit: Audit) -> Store:
    """Makes it; connects when it is first used."""
    features = settings.features
    max_age_s = features.retention_days * _DAY_S
    if features.store == "embedded":
        return EmbeddedStore(
            features_dir(settings), max_bytes=features.max_bytes, max_age_s=max_age_s,
            compact_after_s=features.compact_after_s, on_audit=on_audit,
        )  # fmt: skip
    return RedisStore(
        parse_address(features.store, redis_password()), timeout_ms=features.timeout_ms, max_age_s=max_age_s,
        compact_after_s=features.compact_after_s, on_audit=on_audit,
    )  # fmt: skip
