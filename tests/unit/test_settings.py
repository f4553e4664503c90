"""Settings: every unknown key and impossible value is refused by key, value and what is allowed; all are used."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from serve import settings as module
from serve.settings import Settings, SettingsError, Tunables, parse

ROOT = Path(__file__).resolve().parents[2]
FRAUD = {"budget_ms": 50}


def refused(args: Any, schema: type[BaseModel] = Settings, where: str = "args") -> str:
    with pytest.raises(SettingsError) as error:
        parse(schema, args, where)
    return str(error.value)


def test_the_defaults_are_valid():
    settings = parse(Settings, {}, "args")
    assert (settings.listen.http_port, settings.listen.grpc_port, settings.listen.metrics_port) == (8000, 8001, 8002)
    assert settings.listen.host == "127.0.0.1"
    assert parse(Tunables, {}, "user_config").log_level == "INFO"


def test_the_shipped_configuration_is_valid():
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]
    assert parse(Settings, shipped["args"], "args").pipelines.fraud.budget_ms == 50
    for deployment in shipped["deployments"]:
        parse(Tunables, deployment["user_config"], "user_config")


# Unknown keys


@pytest.mark.parametrize(
    ("args", "key", "neighbour"),
    [
        ({"listne": {}}, "args.listne", "listen"),
        ({"listen": {"http_prot": 1}}, "args.listen.http_prot", "http_port"),
        ({"limits": {"max_body": 1}}, "args.limits.max_body", "max_body_bytes"),
        ({"features": {"pth": "x"}}, "args.features.pth", "max_bytes"),
        ({"repository": {"x": "x"}}, "args.repository.x", "path"),
        ({"pipelines": {"fraud": {**FRAUD, "max_queue": 1}}}, "args.pipelines.fraud.max_queue", "max_queue_items"),
        ({"models": {"m": {"budget": 1}}}, "args.models.m.budget", "budget_ms"),
        ({"models": {"budget_ms": {"budget": 1}}}, "args.models.budget_ms.budget", "max_queue_items"),
    ],
)
def test_an_unknown_key_is_named_beside_those_that_are_allowed(args, key, neighbour):
    message = refused(args)
    assert f"{key}: unknown key; allowed: " in message
    assert neighbour in message.partition("allowed: ")[2]


def test_an_unknown_tunable_is_named_beside_those_that_are_allowed():
    message = refused({"fraud": {"review": 0.5}}, Tunables, "user_config")
    assert "user_config.fraud.review: unknown key; allowed: " in message
    assert "review_at" in message


def test_an_unknown_pipeline_is_named_with_those_that_exist():
    message = refused({"pipelines": {"frawd": FRAUD}})
    assert "frawd" in message
    assert "allowed: fraud" in message


def test_every_mistake_has_a_line_of_its_own():
    message = refused({"revision": "x", "listen": {"http_port": 0, "nope": 1}, "limits": {"drain_s": -1}})
    for key in ("args.revision", "args.listen.http_port", "args.listen.nope", "args.limits.drain_s"):
        assert len([line for line in message.splitlines() if line.strip().startswith(key)]) == 1


# Impossible values

IMPOSSIBLE: list[tuple[dict[str, Any], str, str]] = [
    ({"revision": "one"}, "args.revision", "'one'"),
    ({"listen": {"http_port": 0}}, "args.listen.http_port", "0"),
    ({"listen": {"grpc_port": 65536}}, "args.listen.grpc_port", "65536"),
    ({"listen": {"metrics_port": -1}}, "args.listen.metrics_port", "-1"),
    ({"listen": {"metrics_port": 8000.5}}, "args.listen.metrics_port", "8000.5"),
    ({"listen": {"http_port": True}}, "args.listen.http_port", "True"),
    ({"listen": {"http_port": 8001}}, "args.listen", "8001"),
    ({"listen": {"host": "0.0.0.0"}}, "args.listen", "'0.0.0.0'"),
    ({"listen": {"host": ""}}, "args.listen", "''"),
    ({"listen": {"host": 5}}, "args.listen.host", "5"),
    ({"listen": None}, "args.listen", "None"),
    ({"limits": {"max_body_bytes": 10}}, "args.limits.max_body_bytes", "10"),
    ({"limits": {"max_connections": 0}}, "args.limits.max_connections", "0"),
    ({"limits": {"max_connections": True}}, "args.limits.max_connections", "True"),
    ({"limits": {"drain_s": float("nan")}}, "args.limits.drain_s", "nan"),
    ({"limits": {"drain_s": float("inf")}}, "args.limits.drain_s", "inf"),
    ({"limits": {"idle_timeout_s": 0}}, "args.limits.idle_timeout_s", "0"),
    ({"features": {"store": "redis"}}, "args.features.store", "redis://"),
    ({"features": {"store": "valkey://:hunter2@host"}}, "args.features.store", "not shown"),
    ({"features": {"store": "redis://host:99999"}}, "args.features.store", "HOST:PORT"),
    ({"features": {"store": "redis+sentinel://host:1"}}, "args.features.store", "MASTER"),
    ({"features": {"max_bytes": 1}}, "args.features.max_bytes", "1"),
    ({"features": {"commit_grace_ms": -0.1}}, "args.features.commit_grace_ms", "-0.1"),
    ({"pipelines": {"fraud": {"budget_ms": 0}}}, "args.pipelines.fraud.budget_ms", "0"),
    ({"pipelines": {"fraud": {"budget_ms": 1e400}}}, "args.pipelines.fraud.budget_ms", "inf"),
    ({"pipelines": {"fraud": {**FRAUD, "stages": {"score": -1}}}}, "args.pipelines.fraud.stages.score", "-1"),
    ({"pipelines": {"fraud": {**FRAUD, "stages": {"score": 30, "decide": 30}}}}, "args.pipelines.fraud", "60"),
    ({"pipelines": {"fraud": {**FRAUD, "stages": {"scoer": 1}}}}, "pipelines.fraud.stages", "'scoer'"),
    ({"pipelines": {"fraud": {**FRAUD, "ladder": ["reason"]}}}, "pipelines.fraud.ladder", "'reason'"),
    ({"pipelines": {"fraud": {**FRAUD, "ladder": ["reasons", "reasons"]}}}, "pipelines.fraud", "reasons"),
    ({"pipelines": {"fraud": {**FRAUD, "ladder": "reasons"}}}, "args.pipelines.fraud.ladder", "'reasons'"),
    ({"pipelines": {"fraud": {**FRAUD, "max_batch_items": 0}}}, "args.pipelines.fraud.max_batch_items", "0"),
    ({"pipelines": {"fraud": {**FRAUD, "max_batches_in_flight": 65}}}, "max_batches_in_flight", "65"),
    ({"models": {"m": {"budget_ms": "soon"}}}, "args.models.m.budget_ms", "'soon'"),
    ({"models": ["m"]}, "args.models", "['m']"),
]


@pytest.mark.parametrize(("args", "key", "value"), IMPOSSIBLE, ids=[f"{key}={v}" for _, key, v in IMPOSSIBLE])
def test_an_impossible_value_is_named_with_its_key_and_what_is_allowed(args, key, value):
    message = refused(args)
    assert key in message
    assert value in message
    assert "allowed" in message


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ({"log_level": "LOUD"}, "user_config.log_level", "'LOUD'"),
        ({"max_access_lines_per_s": -1}, "user_config.max_access_lines_per_s", "-1"),
        ({"fraud": {"wait_share": 0}}, "user_config.fraud.wait_share", "0"),
        ({"fraud": {"wait_share": 1.1}}, "user_config.fraud.wait_share", "1.1"),
        ({"fraud": {"review_at": -0.1}}, "user_config.fraud.review_at", "-0.1"),
        ({"fraud": {"decline_at": float("nan")}}, "user_config.fraud.decline_at", "nan"),
        ({"fraud": {"review_at": 0.9, "decline_at": 0.5}}, "user_config.fraud", "0.9"),
        ({"fraud": {"max_batch_items": 0}}, "user_config.fraud.max_batch_items", "0"),
    ],
)
def test_an_impossible_tunable_is_named_with_its_key_and_what_is_allowed(config, key, value):
    message = refused(config, Tunables, "user_config")
    assert key in message
    assert value in message
    assert "allowed" in message


@pytest.mark.parametrize("args", [None, [], "x", 5])
def test_arguments_that_are_no_mapping_are_refused(args):
    assert "args" in refused(args)


def test_a_missing_key_is_said_to_be_missing():
    message = refused({"pipelines": {"fraud": {"max_batch_items": 4}}})
    assert "args.pipelines.fraud.budget_ms" in message
    assert "missing" in message or "required" in message
    assert "is {" not in message  # the whole mapping is not the key's value


def test_stage_budgets_that_add_up_to_exactly_the_budget_are_allowed():
    """0.1 + 0.2 is a little over 0.3 in binary."""
    stages = {"fetch_features": 0.1, "assemble_row": 0.2}
    assert parse(Settings, {"pipelines": {"fraud": {"budget_ms": 0.3, "stages": stages}}}, "args").pipelines


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_word_of_its_own(host):
    assert parse(Settings, {"listen": {"host": host}}, "args").listen.host == host


def test_beyond_loopback_is_allowed_when_it_is_meant():
    assert parse(Settings, {"listen": {"host": "0.0.0.0", "insecure": True}}, "args").listen.insecure


def test_settings_cannot_be_changed_after_they_were_checked():
    with pytest.raises(ValueError, match="frozen"):
        Settings().revision = 2


# Folders


def test_folders_come_from_the_environment_unless_they_are_given(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert module.cache_dir(Settings()) == tmp_path / "cache" / "headroom"
    assert module.features_dir(Settings()) == tmp_path / "data" / "headroom" / "features"
    assert module.run_dir(Settings()).is_relative_to(tmp_path / "run")
    given = parse(Settings, {"cache_dir": "/c", "run_dir": "/r", "features": {"path": "/f"}}, "args")
    assert [str(f(given)) for f in (module.cache_dir, module.run_dir, module.features_dir)] == ["/c", "/r", "/f"]


def test_two_servers_on_different_ports_do_not_share_a_run_folder():
    other = parse(Settings, {"listen": {"http_port": 9000}}, "args")
    assert module.run_dir(Settings()) != module.run_dir(other)


def test_every_configured_path_understands_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = {"cache_dir": "~/c", "run_dir": "~/r", "access_log": "~/a.log", "features": {"path": "~/f"}}
    settings = parse(Settings, {**raw, "repository": {"path": "~/m"}}, "args")
    folders = (module.cache_dir, module.run_dir, module.features_dir, module.repository_dir, module.access_log_path)
    assert [folder(settings) for folder in folders] == [tmp_path / name for name in ("c", "r", "f", "m", "a.log")]


def test_the_access_log_is_a_file_of_the_run_folder_or_stderr():
    assert module.access_log_path(Settings()) == module.run_dir(Settings()) / "access.log"
    assert module.access_log_path(parse(Settings, {"access_log": "stderr"}, "args")) is None


# Use


def schemas(schema: type[BaseModel]) -> set[type[BaseModel]]:
    found = {schema}
    for field in schema.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= schemas(kind)
    return found


def attributes_read() -> set[str]:
    """Names that some module of the server reads as an attribute, validators of the schema aside."""
    names: set[str] = set()
    for path in (ROOT / "serve").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path.name == "settings.py":
            tree = ast.Module([node for node in tree.body if isinstance(node, ast.FunctionDef)], [])
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names


def test_every_setting_is_read_somewhere():
    """A key that changes nothing is a lie. `revision` is there to be bumped, and `insecure` is for the validator of
    `listen`.
    """
    fields = {name for schema in schemas(Settings) | schemas(Tunables) for name in schema.model_fields}
    assert fields - attributes_read() == {"revision", "insecure"}
