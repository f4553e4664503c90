"""A model file that is damaged: what can serve goes on serving, and readiness and index say what cannot and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from server import READY_S, ROOT, Server, wait_until
from transactions import transaction
from tritonclient.utils import InferenceServerException

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from protos.headroom.fraud.v1.fraud_pb2_grpc import FraudServiceStub

pytestmark = pytest.mark.e2e

MODEL = "fraud_ensemble"
FILE = "xgboost.ubj"


def repository(folder: Path) -> Path:
    copied = folder / "repository"
    shutil.copytree(ROOT / "model_repository", copied)
    return copied


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def newer_is_damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("newer")
    models = repository(folder)
    shutil.copytree(models / MODEL / "1", models / MODEL / "2")
    truncate(models / MODEL / "2" / FILE)
    server = Server(folder, repository__path=str(models))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def only_one_is_damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It lives and never becomes ready."""
    folder = tmp_path_factory.mktemp("only")
    models = repository(folder)
    truncate(models / MODEL / "1" / FILE)
    server = Server(folder, repository__path=str(models))
    server.launch()
    try:
        wait_until(lambda: "answering on" in server.log_text(), READY_S, "the server answers")
        yield server
    finally:
        server.stop()


def index(server: Server) -> dict[tuple[str, str], dict[str, str]]:
    status, body, _ = server.call("POST", "/v2/repository/index", b"")
    assert status == 200, body
    return {(model["name"], model["version"]): model for model in json.loads(body)}


def test_the_older_version_serves_while_the_newer_is_damaged(newer_is_damaged: Server) -> None:
    assert newer_is_damaged.get("/v2/health/ready")[0] == 200
    assert newer_is_damaged.get(f"/v2/models/{MODEL}/ready")[0] == 200
    assert newer_is_damaged.get(f"/v2/models/{MODEL}/versions/1/ready")[0] == 200
    status, answer, _ = newer_is_damaged.post("/v1/fraud/score", transaction())
    assert (status, answer["model_version"]) == (200, f"{MODEL}:1")


def test_readiness_and_index_say_why_the_newer_does_not_serve(newer_is_damaged: Server) -> None:
    status, body = newer_is_damaged.get(f"/v2/models/{MODEL}/versions/2/ready")
    assert status == 400
    assert FILE in json.loads(body)["error"]
    found = index(newer_is_damaged)
    assert (found[MODEL, "1"]["state"], found[MODEL, "2"]["state"]) == ("READY", "UNAVAILABLE")
    assert FILE in found[MODEL, "2"]["reason"]
    only_ready = newer_is_damaged.call("POST", "/v2/repository/index", b'{"ready": true}')[1]
    ready = {(model["name"], model["version"]) for model in json.loads(only_ready)}
    assert ready == {(MODEL, "1"), ("creditcard", "1"), ("fraud", "1")}


@pytest.mark.parametrize("version", ["", "1"])
def test_infer_goes_to_the_version_that_serves(newer_is_damaged: Server, version: str) -> None:
    tensor = tritonclient.grpc.InferInput("input__0", [1, 33], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 33), np.float32))
    with tritonclient.grpc.InferenceServerClient(newer_is_damaged.grpc) as client:
        result = client.infer(MODEL, [tensor], model_version=version)
        assert result.get_response().model_version == "1"


def test_infer_of_the_damaged_version_says_why(newer_is_damaged: Server) -> None:
    body = {"inputs": [{"name": "input__0", "shape": [1, 33], "datatype": "FP32", "data": [0.0] * 33}]}
    status, answer, _ = newer_is_damaged.post(f"/v2/models/{MODEL}/versions/2/infer", body)
    assert status == 503, answer
    assert FILE in answer["error"]
    tensor = tritonclient.grpc.InferInput("input__0", [1, 33], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 33), np.float32))
    with (
        tritonclient.grpc.InferenceServerClient(newer_is_damaged.grpc) as client,
        pytest.raises(InferenceServerException, match=FILE),
    ):
        client.infer(MODEL, [tensor], model_version="2")


def test_with_no_version_left_the_server_lives_and_is_not_ready_and_says_why(only_one_is_damaged: Server) -> None:
    assert only_one_is_damaged.get("/v2/health/live") == (200, b"")
    for path, expected in (("/v2/health/ready", 503), ("/-/healthz", 503), ("/v2/models/fraud/ready", 400),
                           (f"/v2/models/{MODEL}/ready", 400)):  # fmt: skip
        status, body = only_one_is_damaged.get(path)
        assert status == expected, path
        assert FILE in json.loads(body)["error"], path
        assert "Traceback" not in body.decode()


def test_with_no_version_left_the_other_routes_answer(only_one_is_damaged: Server) -> None:
    found = index(only_one_is_damaged)
    assert found[MODEL, "1"]["state"] == "UNAVAILABLE"
    assert FILE in found[MODEL, "1"]["reason"]
    assert only_one_is_damaged.get("/v2")[0] == 200
    assert only_one_is_damaged.get("/docs")[0] == 200
    assert only_one_is_damaged.get("/v2/budgets")[0] == 200
    assert only_one_is_damaged.get("/metrics", only_one_is_damaged.metrics_port)[0] == 200


def test_with_no_version_left_a_transaction_is_told_why_it_is_not_scored(only_one_is_damaged: Server) -> None:
    for path in ("/v1/fraud/score", "/v1/fraud/score:batch"):
        status, answer, _ = only_one_is_damaged.post(path, transaction())
        assert (status, answer["kind"]) == (503, "not_ready"), answer
        assert FILE in answer["error"]
    message = pb.ScoreRequest(transaction=pb.Transaction(**transaction()))
    with grpc.insecure_channel(only_one_is_damaged.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        FraudServiceStub(channel).Score(message, timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert FILE in refused.value.details()


def test_with_no_version_left_grpc_says_not_ready(only_one_is_damaged: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(only_one_is_damaged.grpc) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready(MODEL)
        assert not client.is_model_ready("fraud")
