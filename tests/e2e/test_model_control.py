"""Models loaded and unloaded while the server runs, by the unmodified tritonclient, on two ingress replicas."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xgboost
from oip_caller import CLIENTS, Caller, calling
from onnx import TensorProto
from server import Server, wait_until
from tritonclient.utils import InferenceServerException

from tests.unit.backends.onnx_models import save_identity, save_sum

pytestmark = pytest.mark.e2e

NUM_CONNECTIONS = 16
"""So many go to both replicas; that none does has a chance of one in thirty thousand."""
CONFIG = """\
backend: "fil"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
parameters [ { key: "model_type" value: { string_value: "xgboost_json" } } ]
"""
ROW = np.array([[0.25, 0.75]], np.float32)


def put_version(repository: Path, name: str, version: int, answer: float, config: str = CONFIG) -> None:
    """A model of one leaf, so to say: its every answer is `answer`."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = np.random.default_rng(version).random((32, 2)), np.full(32, answer)
    trained = xgboost.train({"max_depth": 1, "base_score": answer}, xgboost.DMatrix(rows, labels), 1)
    trained.save_model(folder / "xgboost.json")
    (repository / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("control")
    put_version(made / "models", "first", 1, 1.0)
    put_version(made / "models", "second", 1, 10.0)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(
        folder, repository={"path": str(folder / "models"), "control": "explicit", "load": ["first"]}, pipelines={}
    )
    running.ingress["num_replicas"] = 2
    running.write_config()
    try:
        running.start()
        wait_until(lambda: len(running.replicas()) == 2, 60, "both replicas are there")
        yield running
    finally:
        running.stop()


@pytest.fixture
def repository(folder: Path) -> Path:
    return folder / "models"


@pytest.fixture(params=CLIENTS)
def caller(request: pytest.FixtureRequest, server: Server) -> Iterator[Caller]:
    with calling(server, request.param) as made:
        yield made


def answer(caller: Caller, name: str, version: str = "") -> float:
    result = caller("infer", name, [caller.input("x", ROW, "FP32")], model_version=version)
    return float(result.as_numpy("y")[0, 0])


def answers_of_all(server: Server, name: str, version: str = "") -> set[float | str]:
    """What connections of their own are told, by either replica."""
    found: set[float | str] = set()
    for kind in ("http", "grpc"):
        for _ in range(NUM_CONNECTIONS):
            with calling(server, kind) as one:
                try:
                    found.add(answer(one, name, version))
                except InferenceServerException as error:
                    found.add(error.message()[:39])
    return found


def states(caller: Caller) -> dict[tuple[str, str], str]:
    index = caller.json("get_model_repository_index")
    models = index if caller.is_http else index.get("models", [])
    return {(model["name"], model.get("version", "")): model.get("state", "") for model in models}


def unload_all(caller: Caller, *names: str) -> None:
    for name in names:
        caller("unload_model", name)


def test_only_what_was_named_is_loaded_and_the_index_lists_the_others(server: Server) -> None:
    with calling(server, "http") as caller:
        assert states(caller) == {("first", "1"): "READY", ("second", ""): ""}
        assert caller("is_model_ready", "first")
        assert not caller("is_model_ready", "second")


def test_a_load_and_an_unload_hold_on_every_replica_when_they_are_acknowledged(server: Server, caller: Caller) -> None:
    caller("load_model", "second")
    assert answers_of_all(server, "second") == {10.0}
    assert states(caller)["second", "1"] == "READY"
    assert caller("is_model_ready", "second", "1")
    caller("unload_model", "second")
    assert answers_of_all(server, "second") == {"Request for unknown model: 'second' has"}
    assert states(caller)["second", "1"] == "UNAVAILABLE"
    assert answer(caller, "first") == 1.0


def test_a_new_version_takes_over_without_a_failed_call_and_the_old_one_can_be_kept(
    server: Server, repository: Path, caller: Caller
) -> None:
    put_version(repository, "moving", 1, 1.0)
    shutil.rmtree(repository / "moving" / "2", ignore_errors=True)
    caller("load_model", "moving")
    is_over, failures, seen = threading.Event(), [], set()

    def ask(kind: str) -> None:
        with calling(server, kind) as one:
            while not is_over.is_set():
                try:
                    seen.add(answer(one, "moving"))
                except InferenceServerException as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("http", "grpc") * 2]
    for thread in threads:
        thread.start()
    put_version(repository, "moving", 2, 2.0)
    caller("load_model", "moving")
    assert answers_of_all(server, "moving") == {2.0}
    put_version(repository, "moving", 2, 2.0, CONFIG + "version_policy { all { } }")
    caller("load_model", "moving")
    is_over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == {1.0, 2.0}
    assert answers_of_all(server, "moving", "1") == {1.0}
    assert answers_of_all(server, "moving", "2") == {2.0}
    assert answers_of_all(server, "moving") == {2.0}
    caller("unload_model", "moving")


def test_a_load_that_fails_leaves_what_serves_and_says_why(server: Server, repository: Path, caller: Caller) -> None:
    put_version(repository, "broken", 1, 5.0)
    caller("load_model", "broken")
    file = repository / "broken" / "1" / "xgboost.json"
    whole = file.read_bytes()
    file.write_bytes(b"{}")
    with pytest.raises(InferenceServerException, match="failed to load 'broken': version 1: "):
        caller("load_model", "broken")
    file.write_bytes(whole)
    assert answers_of_all(server, "broken") == {5.0}
    index = caller.json("get_model_repository_index")
    reasons = [one["reason"] for one in (index if caller.is_http else index["models"]) if one["name"] == "broken"]
    assert all(reason != "" for reason in reasons)
    caller("unload_model", "broken")


def test_a_load_may_bring_its_configuration(server: Server, caller: Caller) -> None:
    config = {
        "backend": "fil", "max_batch_size": 3,
        "input": [{"name": "other", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
        "parameters": {"model_type": {"string_value": "xgboost_json"}},
    }  # fmt: skip
    caller("load_model", "second", config=json.dumps(config))
    shown = caller.json("get_model_config", "second")
    shown = shown if caller.is_http else shown["config"]
    assert (int(shown["max_batch_size"]), shown["input"][0]["name"]) == (3, "other")
    result = caller("infer", "second", [caller.input("other", ROW, "FP32")])
    assert result.as_numpy("y")[0, 0] == 10.0
    caller("load_model", "second")
    assert answers_of_all(server, "second") == {10.0}
    caller("unload_model", "second")


def test_an_onnx_model_needs_no_configuration(repository: Path, caller: Caller) -> None:
    save_sum(repository / "adding" / "1" / "model.onnx")
    caller("load_model", "adding")
    shown = caller.json("get_model_config", "adding")
    shown = shown if caller.is_http else shown["config"]
    assert (shown["backend"], int(shown["max_batch_size"])) == ("onnxruntime", 4)
    assert [one["name"] for one in shown["input"]] == ["a", "b"]
    inputs = [caller.input(name, ROW * factor, "FP32") for name, factor in (("a", 1), ("b", 10))]
    np.testing.assert_array_equal(caller("infer", "adding", inputs).as_numpy("sum"), ROW * 11)
    caller("unload_model", "adding")


def test_a_repository_of_names(repository: Path, caller: Caller) -> None:
    """Text in, text out; a name that a URL has to quote."""
    name = "names & labels"
    save_identity(repository / name / "1" / "model.onnx", TensorProto.STRING)
    caller("load_model", name)
    values = np.array([["ü☺".encode(), b""]], np.object_)
    assert caller("infer", name, [caller.input("x", values, "BYTES")]).as_numpy("y").tolist() == values.tolist()
    assert caller("is_model_ready", name)
    caller("unload_model", name)


BESIDE = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "x")
        if (x.as_numpy() < 0).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("x is negative"))
        asking = pb_utils.InferenceRequest(model_name="first", requested_output_names=["y"], inputs=[x])
        found = asking.exec()
        if found.has_error():
            return pb_utils.InferenceResponse(error=found.error())
        y = pb_utils.get_output_tensor_by_name(found, "y").as_numpy() + 0.5
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", y), pb_utils.Tensor("pid", np.array([[os.getpid()]]))])
"""
BESIDE_CONFIG = CONFIG.replace("fil", "python") + 'output [ { name: "pid" data_type: TYPE_INT64 dims: [ 1 ] } ]'


def test_a_model_py_runs_as_it_is_asks_another_model_and_survives_its_process(repository: Path, caller: Caller) -> None:
    (repository / "beside" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "beside" / "1" / "model.py").write_text(BESIDE)
    (repository / "beside" / "config.pbtxt").write_text(BESIDE_CONFIG)
    caller("load_model", "beside")
    assert answer(caller, "beside") == 1.5
    negative = caller.input("x", -ROW, "FP32")
    with pytest.raises(InferenceServerException, match="x is negative"):
        caller("infer", "beside", [negative])
    pid = int(caller("infer", "beside", [caller.input("x", ROW, "FP32")]).as_numpy("pid")[0, 0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_answered(caller, "beside"), 20, "the process is there again")
    caller("unload_model", "beside")
    wait_until(lambda: not psutil.pid_exists(pid), 20, "the process is gone")


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "total" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling { step [
  { model_name: "adding2" model_version: -1 input_map { key: "a" value: "x" } input_map { key: "b" value: "doubled" }
    output_map { key: "sum" value: "total" } },
  { model_name: "adding1" model_version: -1 input_map { key: "a" value: "x" } input_map { key: "b" value: "x" }
    output_map { key: "sum" value: "doubled" } }
] }
"""


def test_an_ensemble_brings_its_models_along_and_takes_them_away(
    server: Server, repository: Path, caller: Caller
) -> None:
    for name in ("adding1", "adding2"):
        save_sum(repository / name / "1" / "model.onnx")
    (repository / "together" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "together" / "config.pbtxt").write_text(ENSEMBLE)
    caller("load_model", "together")
    before = counts(statistics(caller, "adding1"))
    for _ in range(3):
        found = caller("infer", "together", [caller.input("x", np.repeat(ROW, 2, axis=0), "FP32")]).as_numpy("total")
        np.testing.assert_allclose(found, np.repeat(3 * ROW, 2, axis=0))
    grown = {name: n - before[name] for name, n in counts(statistics(caller, "adding1")).items()}
    assert (grown["success"], grown["inference_count"], grown["execution_count"]) == (3, 6, 3)
    shown = caller.json("get_model_config", "together")
    shown = shown if caller.is_http else shown["config"]
    assert [one["model_name"] for one in shown["ensemble_scheduling"]["step"]] == ["adding2", "adding1"]
    caller("unload_model", "together", unload_dependents=True)
    left = {name: state for (name, _), state in states(caller).items()}
    assert {left[name] for name in ("together", "adding1", "adding2")} == {"UNAVAILABLE"}


def is_answered(caller: Caller, name: str) -> bool:
    try:
        return answer(caller, name) == 1.5
    except InferenceServerException:
        return False


def statistics(caller: Caller, name: str, version: str = "") -> dict[str, Any]:
    (found,) = caller.json("get_inference_statistics", name, version)["model_stats"]
    return found


def counts(found: dict[str, Any]) -> dict[str, int]:
    """By duration, and of inferences and executions; protobuf's JSON has 64-bit numbers as text, and leaves zeros out."""
    stats = found["inference_stats"]
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    durations = {name: int(stats[name].get("count", 0)) for name in names}
    return durations | {name: int(found.get(name, 0)) for name in ("inference_count", "execution_count")}


def test_statistics_count_what_both_replicas_have_answered(server: Server, caller: Caller) -> None:
    before = counts(statistics(caller, "first"))
    rows = caller.input("x", np.repeat(ROW, 3, axis=0), "FP32")
    for _ in range(5):
        caller("infer", "first", [rows])
    answers_of_all(server, "first")  # one row each
    with pytest.raises(InferenceServerException):
        caller("infer", "first", [caller.input("x", np.zeros((9, 2), np.float32), "FP32")])  # more than a batch
    found = statistics(caller, "first", "1")
    grown = {name: n - before[name] for name, n in counts(found).items()}
    num_requests = 5 + 2 * NUM_CONNECTIONS
    answered = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {name: grown[name] for name in answered} == dict.fromkeys(answered, num_requests)
    assert (grown["fail"], grown["cache_hit"]) == (1, 0)
    assert grown["inference_count"] == 5 * 3 + 2 * NUM_CONNECTIONS
    assert grown["execution_count"] == num_requests  # one after the other: none was joined
    assert {"1", "3"} <= {str(one["batch_size"]) for one in found["batch_stats"]}
    assert int(found["last_inference"]) > 1_700_000_000_000
    assert {one["name"] for one in caller.json("get_inference_statistics")["model_stats"]} == {"first"}
    with pytest.raises(InferenceServerException, match="unknown model"):
        statistics(caller, "none")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c("load_model", "none"), "failed to load 'none': the repository has no such model"),
        (lambda c: c("load_model", "../first"), "no such model|not found|no route"),
        (lambda c: c("load_model", "first", config="{"), "config is not a model configuration"),
        (lambda c: c("load_model", "first", config="[1]"), "config is not a model configuration"),
        (lambda c: c("load_model", "first", config='{"name": "second"}'), "name is 'second'; allowed 'first'"),
        (lambda c: c("load_model", "first", config='{"backend": "nope"}'), "backend is 'nope'; allowed"),
        (
            lambda c: c("load_model", "first", config="{}", files={"file:1/x": b"x"}),
            "model files are not taken from clients",
        ),
        (lambda c: c("unload_model", "none"), "Request for unknown model: 'none' is not found"),
    ],
)
def test_wrong_operations_say_what_is_wrong_and_change_nothing(
    caller: Caller, call: Callable[[Caller], Any], said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said):
        call(caller)
    assert answer(caller, "first") == 1.0


def test_a_replica_that_comes_later_serves_what_was_loaded_since_the_start(server: Server) -> None:
    with calling(server, "grpc") as caller:
        caller("load_model", "second")
        former = {process.pid for process in server.replicas()}
        killed = server.replicas()[0]
        killed.kill()
        wait_until(lambda: len({p.pid for p in server.replicas()} - former) == 1, 60, "another replica has begun")
        wait_until(lambda: answers_of_all(server, "second") == {10.0}, 60, "and serves it as the other does")
        caller("unload_model", "second")
        assert answers_of_all(server, "second") == {"Request for unknown model: 'second' has"}


def test_a_folder_that_is_followed(tmp_path: Path) -> None:
    """Models that are put there, changed and taken away while the server runs."""
    models = tmp_path / "models"
    put_version(models, "first", 1, 1.0)
    polling = Server(tmp_path, repository={"path": str(models), "control": "poll", "poll_s": 0.2}, pipelines={})
    try:
        polling.start()
        assert answers_of_all(polling, "first") == {1.0}
        put_version(tmp_path / "aside", "second", 1, 2.0)
        (tmp_path / "aside" / "second").rename(models / "second")
        wait_until(lambda: answers_of_all(polling, "second") == {2.0}, 60, "what was put there serves")
        put_version(models, "first", 2, 3.0)
        wait_until(lambda: answers_of_all(polling, "first") == {3.0}, 60, "a new version serves")
        (models / "first" / "2" / "xgboost.json").write_text("{}")
        (models / "second").rename(tmp_path / "aside" / "second")
        wait_until(lambda: 2.0 not in answers_of_all(polling, "second"), 60, "what was taken away does not")
        assert answers_of_all(polling, "first") == {3.0}  # what is broken since then leaves what serves
        with (
            calling(polling, "http") as caller,
            pytest.raises(InferenceServerException, match=r"repository\.control is poll"),
        ):
            caller("load_model", "first")
    finally:
        polling.stop()
