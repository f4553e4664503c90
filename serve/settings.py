"""The schema of `serve_config.yaml`: `args` (structure, `Settings`) and `user_config` (tunables, `Tunables`).

Unknown keys and impossible values are refused before any model loads, with a message that names the key, the value and
what is allowed. The only module that reads the environment. Ray calls it through `serve.app.build`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve.features.redis_connection import parse_address

_M = TypeVar("_M", bound=BaseModel)
Port = Annotated[int, Field(ge=1, le=65535)]
PositiveMs = Annotated[float, Field(gt=0, le=3_600_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
_REDIS = r"^rediss?(\+sentinel|\+cluster)?://\S+$"
_STORES = "embedded, redis://…, rediss://…, redis+sentinel://…/master, redis+cluster://…"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(ValueError):
    """The configuration is wrong; the text has one line per mistake: key, value, what is allowed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class GrpcTls(_Part):
    """TLS of the gRPC port, by files in PEM. Looked at once a second: new ones greet new connections."""

    certificate: Annotated[str, Field(min_length=1)]
    """The server's, then the chain."""
    key: Annotated[str, Field(min_length=1)]
    client_ca: str = ""
    """Where it is given, clients must show a certificate that one of these has signed."""

    @property
    def files(self) -> tuple[str, str, str]:
        """Certificate, key, client CA or nothing."""
        return self.certificate, self.key, self.client_ca


class Listen(_Part):
    """Where the server answers. Ports are Triton's."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    grpc_transport: Literal["auto", "native", "aio"] = "auto"
    """`native`: the C++ transport; `aio`: grpc.aio; `auto`: native where it has been built."""
    grpc_threads: Annotated[int, Field(ge=0, le=64)] = 0
    """Threads of the native transport; 0: one for two cores, at most four."""
    grpc_tls: GrpcTls | None = None
    insecure: bool = False
    """Allows binding beyond loopback although no keys are configured."""

    @model_validator(mode="after")
    def ports_differ(self) -> Listen:
        """Three listeners need three ports."""
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        if len(set(ports)) < len(ports):
            raise ValueError(f"http_port, grpc_port and metrics_port are {ports}; allowed: three different ports")
        return self

    @model_validator(mode="after")
    def beyond_loopback_is_meant(self) -> Listen:
        """Nobody opens a server without keys to a network by accident."""
        if self.host not in _LOOPBACK and not self.insecure:
            raise ValueError(f"host is {self.host!r}; allowed without keys: {_LOOPBACK}, or set insecure: true")
        return self


class Limits(_Part):
    """Bounds of the edge. Each has a rejection of its own name."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 31)] = 8 << 20
    max_header_bytes: Annotated[int, Field(ge=1024, le=1 << 20)] = 16 << 10
    max_buffered_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 40)] = 512 << 20
    """Of gRPC messages that wait, all connections together; native transport only."""
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    max_concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    max_streams_per_connection: Annotated[int, Field(ge=1, le=100_000)] = 1024
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    idle_timeout_s: Seconds = 75.0
    write_timeout_s: Seconds = 30.0
    max_connection_age_s: Seconds = 3600.0
    drain_s: Seconds = 10.0


def _is_address(text: str) -> str:
    if text != "embedded":
        parse_address(text)
    return text


Store = Annotated[str, Field(pattern=_REDIS), AfterValidator(_is_address)]
"""The address of a Redis."""


class FeastViewSettings(_Part):
    """A feature view of Feast's, and which of its features stand for which of the model's."""

    view: Annotated[str, Field(min_length=1)]
    entity: Literal["customer", "terminal"]
    join_key: Annotated[str, Field(min_length=1)]
    id_type: Literal["string", "int64"] = "string"
    features: Annotated[dict[str, str], Field(min_length=1)]
    """The model's feature to Feast's."""


class Feast(_Part):
    """Features read from Feast's online store on Redis (entity key serialization version 3), in place of our own."""

    store: Store
    project: Annotated[str, Field(min_length=1)]
    views: Annotated[tuple[FeastViewSettings, ...], Field(strict=False, min_length=1)]
    timeout_ms: Annotated[float, Field(gt=0, le=10_000)] = 10.0


class Features(_Part):
    """The store of online features and decisions."""

    store: Annotated[str, Field(pattern=rf"^embedded$|{_REDIS}"), AfterValidator(_is_address)] = "embedded"
    """`embedded`, or the address of a Redis: redis://, rediss:// (TLS), redis+sentinel://, redis+cluster://."""
    path: str = "auto"
    """Folder of the embedded store; `auto` is `$XDG_DATA_HOME/headroom/features`."""
    timeout_ms: Annotated[float, Field(gt=0, le=10_000)] = 2.0
    """How long Redis may take to answer for a batch of one; each further row adds 0.02. Late is as good as down."""
    max_bytes: Annotated[int, Field(ge=16 << 20, le=1 << 42)] = 4 << 30
    retention_days: Annotated[float, Field(gt=0, le=3650)] = 30.0
    """How long a decision is kept."""
    compact_after_s: Annotated[float, Field(ge=0, le=30 * 86_400)] = 86_400.0
    """Within what time the store is compacted after a customer was erased: then it has left the disk."""
    feast: Feast | None = None
    commit_grace_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    """How late, over the decide stage's budget, a commit may be before the answer leaves as `unrecorded`."""


class RepositorySettings(_Part):
    """Where models are. A relative path counts from the folder the server is started in."""

    path: str = "model_repository"
    control: Literal["none", "explicit", "poll"] = "none"
    """`none`: everything is loaded at the start, and stays. `explicit`: `load` says what, and clients load and unload.
    `poll`: the folder is looked at every `poll_s`, and followed.
    """
    poll_s: Annotated[float, Field(ge=0.1, le=86_400)] = 15.0
    load: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Models loaded at the start by `explicit`; `*` is all of them."""


class Pipeline(_Part):
    """What is published for a pipeline, and how it may save time."""

    budget_ms: PositiveMs
    stages: dict[str, PositiveMs] = Field(default_factory=dict)
    ladder: Annotated[tuple[str, ...], Field(strict=False)] = ()
    max_batches_in_flight: Annotated[int, Field(ge=1, le=64)] = 1
    max_batch_items: Annotated[int, Field(ge=1, le=65536)] = 256
    max_queue_items: Annotated[int, Field(ge=1, le=1_000_000)] = 4096

    @model_validator(mode="after")
    def stages_fit_the_budget(self) -> Pipeline:
        """Stage budgets that add up to more than the whole promise nothing."""
        total_ms = sum(self.stages.values())
        if total_ms > self.budget_ms * (1 + 1e-9):
            raise ValueError(f"stages add up to {total_ms:g} ms; allowed: at most budget_ms, {self.budget_ms:g}")
        return self


class FraudSettings(Pipeline):
    """What only the fraud pipeline has."""

    model_version: Annotated[str, Field(pattern="^([1-9][0-9]{0,17})?$")] = ""
    """Version of the ensemble that answers; empty: the newest."""
    shadow_version: Annotated[str, Field(pattern="^([1-9][0-9]{0,17})?$")] = ""
    """Version that scores the same transactions and answers nobody; empty: none."""


class Pipelines(_Part):
    """What is served beside the repository's models; a pipeline that is not named is not served."""

    fraud: FraudSettings | None = None

    def named(self) -> dict[str, Pipeline]:
        """Those that are served."""
        return {} if self.fraud is None else {"fraud": self.fraud}


class ModelSettings(_Part):
    """What is said about one model of the repository beside its config.pbtxt."""

    budget_ms: PositiveMs = 1000.0
    max_queue_items: Annotated[int, Field(ge=1, le=1_000_000)] = 16384


FRAUD_STAGES = ("fetch_features", "assemble_row", "score", "explain", "decide")
_PIPELINE_STAGES: Mapping[str, tuple[str, ...]] = {"fraud": FRAUD_STAGES}
_PIPELINE_RUNGS: Mapping[str, tuple[str, ...]] = {"fraud": ("reasons", "features")}


class Settings(_Part):
    """`args` of the application. A change restarts the replicas one by one; `revision` is there to be bumped."""

    revision: int = 1
    listen: Listen = Listen()
    limits: Limits = Limits()
    features: Features = Features()
    repository: RepositorySettings = RepositorySettings()
    pipelines: Pipelines = Pipelines()
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    access_log: str = "auto"
    """A file, `stderr`, or `auto` for access.log in the run folder. Bounded: two files of 64 MiB."""
    audit_log: str = "auto"
    """A file, or `auto` for audit.log beside the folder of the embedded store. Bounded as the access log is."""
    run_dir: str = "auto"
    cache_dir: str = "auto"

    @model_validator(mode="after")
    def stages_and_rungs_are_known(self) -> Settings:
        """A budget for a stage that never runs, or a rung nobody implements, is a typing mistake."""
        for name, pipeline in self.pipelines.named().items():
            if len(set(pipeline.ladder)) < len(pipeline.ladder):
                raise ValueError(f"pipelines.{name}.ladder is {list(pipeline.ladder)}; allowed: each rung once")
            for stage in pipeline.stages:
                _must_be_one_of(f"pipelines.{name}.stages", stage, _PIPELINE_STAGES[name])
            for rung in pipeline.ladder:
                _must_be_one_of(f"pipelines.{name}.ladder", rung, _PIPELINE_RUNGS[name])
        return self


def _must_be_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} has {value!r}; allowed: {', '.join(allowed)}")


class PipelineTunables(_Part):
    """What may change while the pipeline serves."""

    wait_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Part of the time a request was given within which its answer must be predicted, or it is refused early."""
    max_batch_items: Annotated[int, Field(ge=1, le=65536)] | None = None


class RuleTunables(_Part):
    """From what on a transaction is reviewed whatever its score; unset rules never hold."""

    velocity: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Earlier transactions of the card within the hour."""
    distance_km: Annotated[float, Field(gt=0, le=20_038)] | None = None
    """From where the card is used on average."""
    speed_km_per_h: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Since the card's last known place."""
    amount: Annotated[float, Field(gt=0, le=1e9)] | None = None
    new_terminal_amount: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """At a terminal the card was not used at for 30 days."""


class FraudTunables(PipelineTunables):
    """Thresholds on the probability of fraud; unset ones come from the model."""

    rules: RuleTunables = RuleTunables()
    calibrate: bool = False
    """Corrects probabilities by what labels said, once there are a hundred of each kind."""
    review_at: Annotated[float, Field(ge=0, le=1)] | None = None
    decline_at: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def review_comes_first(self) -> FraudTunables:
        """Declining below the review threshold would leave no review."""
        if self.review_at is not None and self.decline_at is not None and self.review_at > self.decline_at:
            raise ValueError(f"review_at is {self.review_at}; allowed: at most decline_at, {self.decline_at}")
        return self


class Tunables(_Part):
    """`user_config` of the Ingress deployment: applied by `reconfigure` without a restart."""

    fraud: FraudTunables = FraudTunables()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    max_access_lines_per_s: Annotated[int, Field(ge=0, le=1_000_000)] = 1000


def parse(schema: type[_M], raw: Any, where: str) -> _M:
    """Checks `raw` against `schema`; raises SettingsError naming each key of `where`, its value and what is allowed."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        lines = [_mistake(where, dict(mistake), schema) for mistake in error.errors()]
        raise SettingsError("serve_config.yaml is not valid:\n  " + "\n  ".join(lines)) from None


def _mistake(where: str, mistake: dict[str, Any], schema: type[BaseModel]) -> str:
    key = ".".join([where, *map(str, mistake["loc"])])
    if mistake["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_at(schema, mistake["loc"][:-1])) or "no further key"
        return f"{key}: unknown key; allowed: {allowed}"
    if mistake["type"] == "missing":
        return f"{key}: is missing; it is required"
    if mistake["type"] == "value_error":
        return f"{key}: {mistake['ctx']['error']}"
    if mistake["loc"][-1:] == ("store",):
        return f"{key}: is no address (it may hold a password, so it is not shown); allowed: {_STORES}"
    return f"{key}: is {mistake['input']!r}; allowed: {mistake['msg'].removeprefix('Input should be ')}"


def _keys_at(schema: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys `schema` allows below `path`; a path through a mapping skips the mapping's own key."""
    model: type[BaseModel] = schema
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            continue
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return sorted(model.model_fields)


def cache_dir(settings: Settings) -> Path:
    """Where what is derived on this machine is kept."""
    return _folder(settings.cache_dir, "XDG_CACHE_HOME", ".cache", "headroom")


def redis_password() -> str | None:
    """Of the feature store, where its address holds none: a configuration file is no place for secrets."""
    return os.environ.get("HEADROOM_REDIS_PASSWORD") or None


def feast_password() -> str | None:
    """Of Feast's store, which is another team's."""
    return os.environ.get("HEADROOM_FEAST_PASSWORD") or None


def features_dir(settings: Settings) -> Path:
    """Where the embedded store keeps its data."""
    return _folder(settings.features.path, "XDG_DATA_HOME", ".local/share", "headroom/features")


def repository_dir(settings: Settings) -> Path:
    """Where models are."""
    return Path(settings.repository.path).expanduser().absolute()


def access_log_path(settings: Settings) -> Path | None:
    """Where access lines go; None is stderr."""
    if settings.access_log == "stderr":
        return None
    return (
        run_dir(settings) / "access.log"
        if settings.access_log == "auto"
        else Path(settings.access_log).expanduser().absolute()
    )


def audit_log_path(settings: Settings) -> Path:
    """Where audit lines go."""
    if settings.audit_log == "auto":
        return features_dir(settings).parent / "audit.log"
    return Path(settings.audit_log).expanduser().absolute()


def run_dir(settings: Settings) -> Path:
    """Where the sockets' holder and the replicas of one server meet: one folder per server, that is per HTTP port."""
    if settings.run_dir != "auto":
        return Path(settings.run_dir).expanduser().absolute()
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    return Path(base) / f"headroom-{os.getuid()}-{settings.listen.http_port}"


def _folder(configured: str, variable: str, fallback: str, name: str) -> Path:
    if configured != "auto":
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get(variable) or Path.home() / fallback) / name
