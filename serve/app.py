"""`build(settings) → Application`: the only place that binds deployments. `serve_config.yaml` names it.

No `from __future__ import annotations` here: Ray reads the builder's annotation unresolved, and with it as a string the
configuration would arrive unchecked.
"""

from typing import Any

from ray import serve as ray_serve
from ray.serve import Application

from serve.deployments import Ingress
from serve.settings import Settings, parse

_HEALTH_CHECK_PERIOD_S = 1
_SHUTDOWN_MARGIN_S = 5


def build(args: dict[str, Any]) -> Application:
    """Checks `args` before anything is deployed; raises SettingsError naming every wrong key."""
    settings = parse(Settings, args, "args")
    ingress = ray_serve.deployment(
        name="Ingress",
        max_surge_percent=100,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=settings.limits.drain_s + _SHUTDOWN_MARGIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0},
        user_config={},
    )(Ingress)
    return ingress.bind(settings)
