"""Decisions after the fact over both protocols: looked up, labelled, erased, compacted; and an ensemble in shadow."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from raw_http import RawClient
from server import ROOT, WIDE_BUDGETS, Server, wait_until
from transactions import new_id, transaction

from protos.headroom.fraud.v1 import fraud_pb2 as pb
from protos.headroom.fraud.v1.fraud_pb2_grpc import FraudServiceStub

pytestmark = pytest.mark.e2e

WAIT_S = 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a second version in shadow that approves nearly everything, and a store that compacts at once."""
    folder = tmp_path_factory.mktemp("records")
    models = folder / "repository"
    shutil.copytree(ROOT / "model_repository", models)
    second = models / "fraud_ensemble" / "2"
    shutil.copytree(models / "fraud_ensemble" / "1", second)
    ensemble = json.loads((second / "stacked.json").read_text())
    ensemble["bias"] -= 20
    (second / "stacked.json").write_text(json.dumps(ensemble))
    one = Server(
        folder, **WIDE_BUDGETS, repository__path=str(models), features__compact_after_s=0.0,
        pipelines__fraud__model_version="1", pipelines__fraud__shadow_version="2",
    )  # fmt: skip
    try:
        yield one.start()
    finally:
        one.stop()


def decided(server: Server, **changes: object) -> dict:
    status, answer, _ = server.post("/v1/fraud/score", transaction(**changes))
    assert (status, answer["degraded"]) == (200, []), answer
    return answer


def metric(server: Server, name: str) -> dict[str, float]:
    """Samples of a family by their labels."""
    text = server.get("/metrics", server.metrics_port)[1].decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name)]
    return {series.removeprefix(name): float(value) for series, _, value in lines}


def test_a_decision_is_found_with_its_transaction(server: Server) -> None:
    answer = decided(server, amount=4321.0, customer_id="kim", terminal_id="m-1")
    status, body = server.get(f"/v1/fraud/decisions/{answer['transaction_id']}")
    found = json.loads(body)
    assert status == 200
    transaction_of = found.pop("transaction")
    assert found == answer
    assert (transaction_of["customer_id"], transaction_of["amount"], transaction_of["fraud"]) == ("kim", 4321.0, None)


def test_an_id_with_a_slash_or_percent_is_found_too(server: Server) -> None:
    answer = decided(server, transaction_id=new_id("a b%/ü"))
    path = "/v1/fraud/decisions/" + "".join(f"%{byte:02X}" for byte in answer["transaction_id"].encode())
    status, body = server.get(path)
    assert (status, json.loads(body)["transaction_id"]) == (200, answer["transaction_id"])


@pytest.mark.parametrize(("path", "expected"), [("nobody", 404), ("x" * 97, 400)])
def test_a_decision_that_is_not_known_is_an_error_in_words(server: Server, path: str, expected: int) -> None:
    status, body = server.get(f"/v1/fraud/decisions/{path}")
    assert status == expected
    assert "transaction" in json.loads(body)["error"]


def test_labels_are_recorded_shown_and_counted(server: Server) -> None:
    fraud, genuine = decided(server, amount=9999.0), decided(server, amount=5.0)
    labels = [
        {"transaction_id": fraud["transaction_id"], "fraud": True},
        {"transaction_id": genuine["transaction_id"], "fraud": False},
        {"transaction_id": "nobody", "fraud": True},
    ]
    status, answer, _ = server.post("/v1/fraud/labels", {"labels": labels})
    assert status == 200
    assert [result["status"] for result in answer["results"]] == ["recorded", "recorded", "unknown"]
    assert [r["status"] for r in server.post("/v1/fraud/labels", {"labels": labels[:1]})[1]["results"]] == ["unchanged"]
    found = json.loads(server.get(f"/v1/fraud/decisions/{fraud['transaction_id']}")[1])
    assert found["transaction"]["fraud"] is True
    wait_until(lambda: bool(metric(server, "headroom_fraud_quality")), WAIT_S, "quality is measured")
    assert metric(server, "headroom_fraud_quality")['{measure="auc_roc"}'] == 1.0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"labels": []}, "labels"),
        ({"labels": [{"transaction_id": "t"}]}, "labels[0]"),
        ({"labels": [{"transaction_id": "t", "fraud": "yes"}]}, "labels[0].fraud"),
        ({"labels": [{"transaction_id": "", "fraud": True}]}, "labels[0].transaction_id"),
        ({"labels": [{"transaction_id": "t", "fraud": True}] * 1025}, "labels"),
        ({"lables": []}, "lables"),
        (b"{", None),
    ],
)
def test_wrong_labels_are_named(server: Server, body: object, field: str | None) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, raw, _ = server.call("POST", "/v1/fraud/labels", data)
    answer = json.loads(raw)
    assert status == 400
    assert "Traceback" not in answer["error"]
    if field is not None:
        assert field in answer["error"] or answer.get("field", "").startswith(field)


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_an_erased_customer_is_unreadable_at_once_and_then_off_the_disk(server: Server) -> None:
    customer, terminal = new_id("customer"), new_id("terminal")
    first = decided(server, customer_id=customer, terminal_id=terminal, amount=777.0)
    assert files_with(server.features_dir, customer)
    status, body, _ = server.call("DELETE", f"/v1/fraud/customers/{customer}", None)
    assert (status, body) == (204, b"")
    assert server.get(f"/v1/fraud/decisions/{first['transaction_id']}")[0] == 404
    label = {"labels": [{"transaction_id": first["transaction_id"], "fraud": True}]}
    assert server.post("/v1/fraud/labels", label)[1]["results"][0]["status"] == "unknown"
    wait_until(lambda: not files_with(server.features_dir, customer), 30, "the customer has left the disk")
    assert not files_with(server.features_dir, first["transaction_id"])
    with RawClient(server.http_port) as client:  # an answer without a body leaves nothing behind on the connection
        for _ in range(2):
            gone = client.request("DELETE", f"/v1/fraud/customers/{customer}").answer()
            assert gone is not None
            assert gone.status == 204
    again = decided(server, transaction_id=first["transaction_id"], customer_id=new_id("other"), amount=5.0)
    assert again["fraud_probability"] != first["fraud_probability"]


def test_every_erasure_and_label_leaves_an_audit_line_without_names(server: Server) -> None:
    customer = new_id("customer")
    server.call("DELETE", f"/v1/fraud/customers/{customer}", None, {"X-Request-Id": "audit-1"})
    text = server.audit_log.read_text()
    [line] = [json.loads(line) for line in text.splitlines() if '"audit-1"' in line]
    assert (line["event"], line["principal"]) == ("erased", "anonymous")
    assert line["customer_sha256"] == hashlib.sha256(customer.encode()).hexdigest()
    assert customer not in text


def test_the_shadow_is_compared_and_answers_nobody(server: Server) -> None:
    customer, terminal = new_id("customer"), new_id("terminal")
    for _ in range(3):
        decided(server, customer_id=customer, terminal_id=terminal, amount=20.0)
    answer = decided(server, customer_id=customer, terminal_id=terminal, amount=9000.0)
    assert (answer["model_version"], answer["decision"]) == ("fraud_ensemble:1", "decline")

    def report() -> dict:
        return json.loads(server.get("/v1/fraud/shadow")[1])

    wait_until(lambda: report()["decisions"].get("decline", {}).keys() - {"decline"}, WAIT_S, "the shadow disagrees")
    found = report()
    assert (found["version"], found["shadow_version"]) == ("fraud_ensemble:1", "fraud_ensemble:2")
    assert 0 < found["agreement"] < 1
    assert found["mean_absolute_difference"] > 0


def test_the_same_over_grpc(server: Server) -> None:
    answer = decided(server, amount=123.0)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = FraudServiceStub(channel)
        found = stub.GetDecision(pb.GetDecisionRequest(transaction_id=answer["transaction_id"]), timeout=WAIT_S)
        assert found.decision.fraud_probability == answer["fraud_probability"]
        assert (found.amount, found.HasField("fraud")) == (123.0, False)
        label = pb.LabelTransactionsRequest(labels=[pb.Label(transaction_id=answer["transaction_id"], fraud=True)])
        assert [one.status for one in stub.LabelTransactions(label, timeout=WAIT_S).results] == ["recorded"]
        stub.EraseCustomer(pb.EraseCustomerRequest(customer_id=found.customer_id), timeout=WAIT_S)
        with pytest.raises(grpc.RpcError) as gone:
            stub.GetDecision(pb.GetDecisionRequest(transaction_id=answer["transaction_id"]), timeout=WAIT_S)
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as refused:
            stub.LabelTransactions(pb.LabelTransactionsRequest(), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
