"""Which feature store the configuration asks for."""

from __future__ import annotations

from serve.features.embedded import EmbeddedStore
from serve.features.redis import RedisStore
from serve.features.redis_connection import parse_address
from serve.features.retention import Audit
from serve.settings import Settings, SettingsError, features_dir, redis_password

_DAY_S = 86_400

Store = EmbeddedStore | RedisStore


def feature_store(settings: Settings, on_audit: Audit) -> Store:
    """Makes it; raises SettingsError for an address that cannot be one."""
    features = settings.features
    max_age_s = features.retention_days * _DAY_S
    if features.store == "embedded":
        return EmbeddedStore(
            features_dir(settings), max_bytes=features.max_bytes, max_age_s=max_age_s,
            compact_after_s=features.compact_after_s, on_audit=on_audit,
        )  # fmt: skip
    try:
        address = parse_address(features.store, redis_password())
    except ValueError as error:
        raise SettingsError(f"args.{error}") from None
    return RedisStore(
        address, timeout_ms=features.timeout_ms, max_age_s=max_age_s, compact_after_s=features.compact_after_s,
        on_audit=on_audit,
    )  # fmt: skip
