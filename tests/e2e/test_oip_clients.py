"""The Open Inference Protocol by the unmodified tritonclient, all four of it, against the model and the pipeline."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import xgboost
from oip_caller import CLIENTS, Caller, calling
from server import ROOT, Server
from transactions import new_id, transaction
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.e2e

MODEL, PIPELINE = "creditcard", "fraud"
NUM_FEATURES = 30
MODEL_FILE = ROOT / "model_repository" / MODEL / "1" / "xgboost.ubj"


@pytest.fixture(params=CLIENTS)
def caller(request: pytest.FixtureRequest, server: Server) -> Iterator[Caller]:
    with calling(server, request.param) as made:
        yield made


@cache
def booster() -> xgboost.Booster:
    return xgboost.Booster(model_file=str(MODEL_FILE))


def rows(num: int) -> np.ndarray[Any, Any]:
    """Feature rows with what real ones have: zeros, large values, missing ones."""
    made = np.random.default_rng(num).gamma(1.0, 50.0, (num, NUM_FEATURES)).astype(np.float32)
    made[np.random.default_rng(1).random(made.shape) < 0.1] = np.nan
    return made


def expected(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    fraud = booster().inplace_predict(values, missing=np.nan)
    return np.stack([1 - fraud, fraud], axis=1)


def test_server_and_model_say_what_they_are(caller: Caller) -> None:
    assert caller("is_server_live")
    assert caller("is_server_ready")
    assert caller("is_model_ready", MODEL)
    assert caller("is_model_ready", MODEL, "1")
    assert not caller("is_model_ready", "nope")
    assert not caller("is_model_ready", MODEL, "9")
    assert caller.json("get_server_metadata")["name"] == "headroom"
    metadata = caller.json("get_model_metadata", MODEL)
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (MODEL, ["1"], "fil")
    [tensor] = metadata["inputs"]
    assert (tensor["name"], tensor["datatype"], [int(dim) for dim in tensor["shape"]]) == (
        "input__0", "FP32", [-1, NUM_FEATURES],
    )  # fmt: skip


def test_config_is_the_model_s_own_and_a_pipeline_is_an_ensemble_of_its_models(caller: Caller) -> None:
    config = caller.json("get_model_config", MODEL)
    config = config if caller.is_http else config["config"]
    assert (config["name"], config["backend"], int(config["max_batch_size"])) == (MODEL, "fil", 4096)
    config = caller.json("get_model_config", PIPELINE)
    config = config if caller.is_http else config["config"]
    assert config["platform"] == "ensemble"
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == ["fraud_ensemble"]


def test_the_repository_index_lists_what_serves(caller: Caller) -> None:
    index = caller.json("get_model_repository_index")
    models = index if caller.is_http else index["models"]
    assert {(model["name"], model["version"], model["state"]) for model in models} == {
        (MODEL, "1", "READY"), ("fraud_ensemble", "1", "READY"), (PIPELINE, "1", "READY"),
    }  # fmt: skip


@pytest.mark.parametrize("num", [1, 7, 4096])
def test_the_model_answers_what_xgboost_predicts(caller: Caller, num: int) -> None:
    values = rows(num)
    result = caller("infer", MODEL, [caller.input("input__0", values, "FP32")], request_id="r-1")
    np.testing.assert_allclose(result.as_numpy("output__0"), expected(values), atol=2e-6)
    response = result.get_response() if caller.is_http else result.get_response(as_json=True)
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", MODEL, "1")


def test_the_model_answers_under_its_version(caller: Caller) -> None:
    values = rows(3)
    result = caller("infer", MODEL, [caller.input("input__0", values, "FP32")], model_version="1")
    np.testing.assert_allclose(result.as_numpy("output__0"), expected(values), atol=2e-6)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_json_and_binary_compressed_or_not_give_the_same(
    server: Server, *, binary_in: bool, binary_out: bool, compression: str | None
) -> None:
    values = np.nan_to_num(rows(5)) if not binary_in else rows(5)
    tensor = tritonclient.http.InferInput("input__0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary_in)
    output = tritonclient.http.InferRequestedOutput("output__0", binary_data=binary_out)
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        result = client.infer(
            MODEL, [tensor], outputs=[output],
            request_compression_algorithm=compression, response_compression_algorithm=compression,
        )  # fmt: skip
    np.testing.assert_allclose(result.as_numpy("output__0"), expected(values), atol=2e-6)


def test_grpc_compression_is_understood(server: Server) -> None:
    values = rows(64)
    tensor = tritonclient.grpc.InferInput("input__0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer(MODEL, [tensor], compression_algorithm="gzip")
    np.testing.assert_allclose(result.as_numpy("output__0"), expected(values), atol=2e-6)


def test_classification_gives_the_best_classes_first(caller: Caller) -> None:
    values = rows(4)
    output = caller.types.InferRequestedOutput("output__0", class_count=2)
    result = caller("infer", MODEL, [caller.input("input__0", values, "FP32")], outputs=[output])
    found = result.as_numpy("output__0")
    assert found.shape == (4, 2)
    for classes, scores in zip(found.tolist(), expected(values), strict=True):
        parts = [text.decode().split(":") for text in classes]
        order = np.argsort(-scores, kind="stable")
        assert [int(part[1]) for part in parts] == order.tolist()
        np.testing.assert_allclose([float(part[0]) for part in parts], scores[order], atol=2e-6)


def fraud_inputs(caller: Caller, transactions: list[dict[str, Any]]) -> list[Any]:
    inputs = []
    for name in transactions[0]:
        column = [[one[name]] for one in transactions]
        is_text = isinstance(column[0][0], str)
        values = np.array(column, dtype=np.object_ if is_text else np.float64)
        inputs.append(caller.input(name, values, "BYTES" if is_text else "FP64"))
    return inputs


def text(result: Any, name: str) -> list[str]:
    return [value.decode() for value in result.as_numpy(name).reshape(-1).tolist()]


def test_the_pipeline_scores_as_its_own_api_does(caller: Caller, server: Server) -> None:
    sent = [transaction(amount=5000.0 + i, currency="EUR", channel="pos", latitude=48.1) for i in range(3)]
    result = caller("infer", PIPELINE, fraud_inputs(caller, sent))
    assert text(result, "transaction_id") == [one["transaction_id"] for one in sent]
    assert text(result, "error") == ["", "", ""]
    stored = [server.post("/v1/fraud/score", one)[1] for one in sent]
    np.testing.assert_array_equal(
        result.as_numpy("fraud_probability").reshape(-1), [one["fraud_probability"] for one in stored]
    )
    for name in ("decision", "risk_level", "model_version"):
        assert text(result, name) == [one[name] for one in stored]
    for name in ("scores", "reasons", "degraded"):
        assert [json.loads(value) for value in text(result, name)] == [one[name] for one in stored]


def test_a_bad_row_fails_alone_and_its_error_names_the_field(caller: Caller) -> None:
    sent = [transaction(), transaction(amount=float("nan")), transaction(transaction_id=""), transaction()]
    result = caller("infer", PIPELINE, fraud_inputs(caller, sent))
    errors = text(result, "error")
    assert [bool(error) for error in errors] == [False, True, True, False]
    assert "amount" in json.loads(errors[1])["field"]
    assert "transaction_id" in json.loads(errors[2])["field"]
    assert text(result, "transaction_id") == [sent[0]["transaction_id"], "", "", sent[3]["transaction_id"]]
    assert np.isnan(result.as_numpy("fraud_probability").reshape(-1)).tolist() == [False, True, True, False]


def test_a_bad_row_can_be_told_in_json_too(server: Server) -> None:
    """Its probability is NaN, as Triton's own JSON writes it and its clients read it."""
    sent = [transaction(), transaction(amount=-1.0)]
    inputs = [
        {"name": name, "shape": [2, 1], "datatype": "BYTES" if isinstance(sent[0][name], str) else "FP64",
         "data": [one[name] for one in sent]}
        for name in sent[0]
    ]  # fmt: skip
    status, answer, _ = server.post("/v2/models/fraud/infer", {"inputs": inputs})
    assert status == 200, answer
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert "amount" in outputs["error"][1]
    assert np.isnan(outputs["fraud_probability"][1])
    assert 0 <= outputs["fraud_probability"][0] <= 1


WRONG: dict[str, tuple[str, str, tuple[int, ...], str, str]] = {
    "unknown model": ("nope", "", (1, NUM_FEATURES), "FP32", "nope"),
    "unknown version": (MODEL, "9", (1, NUM_FEATURES), "FP32", "9"),
    "too few features": (MODEL, "", (1, NUM_FEATURES - 1), "FP32", str(NUM_FEATURES)),
    "too many dimensions": (MODEL, "", (1, 1, NUM_FEATURES), "FP32", "shape"),
    "over the batch limit": (MODEL, "", (4097, NUM_FEATURES), "FP32", "4096"),
    "no rows": (MODEL, "", (0, NUM_FEATURES), "FP32", "shape"),
    "another datatype": (MODEL, "", (1, NUM_FEATURES), "FP64", "FP32"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_cannot_be_answered_is_an_exception_in_clear_words(
    caller: Caller, case: tuple[str, str, tuple[int, ...], str, str]
) -> None:
    model, version, shape, datatype, named = case
    values = np.zeros(shape, np.float64 if datatype == "FP64" else np.float32)
    with pytest.raises(InferenceServerException) as refused:
        caller("infer", model, [caller.input("input__0", values, datatype)], model_version=version)
    message = refused.value.message()
    assert named in message
    assert "route" not in message
    assert refused.value.status() in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")


@pytest.mark.parametrize("method", ["get_model_metadata", "get_model_config"])
def test_metadata_of_a_model_nobody_serves_is_an_exception_that_names_it(caller: Caller, method: str) -> None:
    with pytest.raises(InferenceServerException, match="nope"):
        caller(method, "nope")


def test_a_wrong_input_name_is_an_exception_that_names_the_right_ones(caller: Caller) -> None:
    with pytest.raises(InferenceServerException, match="input__0"):
        caller("infer", MODEL, [caller.input("input", rows(1), "FP32")])


def test_a_missing_required_field_of_the_pipeline_is_named(caller: Caller) -> None:
    sent = transaction(transaction_id=new_id())
    del sent["amount"]
    with pytest.raises(InferenceServerException, match="amount"):
        caller("infer", PIPELINE, fraud_inputs(caller, [sent]))


# Streams


def streamed(server: Server, requests: list[dict[str, Any]], **options: Any) -> list[tuple[Any, Any]]:
    """What `start_stream` and `async_stream_infer` of the unmodified client bring: (result, error) as they come."""
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: found.put((result, error)), **options)
        for request in requests:
            client.async_stream_infer(**request)
        got = [found.get(timeout=30) for _ in requests]
        client.stop_stream()
    assert found.empty()
    return got


def stream_request(name: str, values: np.ndarray[Any, Any], request_id: str) -> dict[str, Any]:
    tensor = tritonclient.grpc.InferInput("input__0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return {"model_name": name, "inputs": [tensor], "request_id": request_id}


def test_a_stream_answers_each_request_by_its_id_and_wrong_ones_in_it(server: Server) -> None:
    batches = {f"r{n}": rows(n + 1) for n in range(20)}
    requests = [stream_request(MODEL, values, name) for name, values in batches.items()]
    wrong = [
        stream_request("nope", rows(1), "unknown"), stream_request(MODEL, rows(1)[:, :7], "shape"),
        {**stream_request(MODEL, rows(1), "version"), "model_version": "9"},
    ]  # fmt: skip
    for request in requests[:3]:
        request["enable_empty_final_response"] = True
    results, errors = {}, {}
    for result, error in streamed(server, [*requests[:7], *wrong, *requests[7:]]):
        if error is None:
            results[result.get_response().id] = result.as_numpy("output__0")
        else:
            errors[str(error)] = error
    assert results.keys() == batches.keys()
    for name, values in batches.items():
        np.testing.assert_allclose(results[name], expected(values), atol=2e-6)
    assert len(errors) == 3
    assert any("Request for unknown model: 'nope'" in text for text in errors)
    assert any("[1, 7]" in text for text in errors)


def test_a_stream_by_the_asynchronous_client(server: Server) -> None:
    async def ask() -> list[str]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for n in range(5):
                yield stream_request(MODEL, rows(n + 1), f"r{n}")

        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            found = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append(result.get_response().id)
            return found

    assert sorted(asyncio.run(ask())) == [f"r{n}" for n in range(5)]


def test_a_stream_may_be_left_and_packed(server: Server) -> None:
    assert streamed(server, [stream_request(MODEL, rows(50), "packed")], compression_algorithm="gzip")[0][1] is None
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: None, stream_timeout=10)
        client.async_stream_infer(**stream_request(MODEL, rows(1), "left"))
        client.stop_stream(cancel_requests=True)
    assert streamed(server, [stream_request(MODEL, rows(1), "again")])[0][1] is None


def test_a_pipeline_is_streamed_as_a_model_is(server: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        metadata = client.get_model_metadata(PIPELINE)
    assert metadata.name == PIPELINE
    (_, error), *_ = streamed(server, [stream_request(PIPELINE, rows(1), "no transaction")])
    assert error is not None  # it has other inputs: said in-band
