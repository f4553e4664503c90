"""Fraud over HTTP as it is documented: decisions, batches, windows that move, headers, the API's own description."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from raw_http import RawClient
from server import BUDGET_MS, Server
from transactions import new_id, transaction

pytestmark = pytest.mark.e2e

FIELDS = {
    "transaction_id",
    "fraud_probability",
    "decision",
    "risk_level",
    "scores",
    "reasons",
    "degraded",
    "model_version",
    "unexplained",
    "cold_start",
}
MEMBERS = {"xgboost", "lightgbm", "isolation_forest", "neural_network"}
STAGES = {"decode", "fetch_features", "assemble_row", "score", "explain", "decide"}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def decide(server: Server, **changes: Any) -> dict[str, Any]:
    status, answer, _ = server.post("/v1/fraud/score", transaction(**changes))
    assert status == 200, answer
    assert answer["degraded"] == []
    return answer


def test_the_answer_has_the_documented_shape(server: Server) -> None:
    sent = transaction(currency="EUR", merchant_category="5411", channel="pos", latitude=48.1, longitude=11.6)
    status, answer, headers = server.post("/v1/fraud/score", sent)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert set(answer) == FIELDS
    assert answer["transaction_id"] == sent["transaction_id"]
    assert 0 <= answer["fraud_probability"] <= 1
    assert answer["decision"] in ("approve", "review", "decline")
    assert answer["risk_level"] in ("low", "medium", "high", "critical")
    assert set(answer["scores"]) == MEMBERS
    assert all(0 <= score <= 1 for score in answer["scores"].values())
    assert answer["model_version"] == "fraud_ensemble:1"


def test_a_time_in_rfc_3339_means_the_same_as_seconds(server: Server) -> None:
    answers = [
        decide(server, timestamp=when, amount=123.45)
        for when in (1_533_724_260, "2018-08-08T10:31:00Z", "2018-08-08T12:31:00+02:00", "2018-08-08T10:31:00")
    ]
    assert datetime.fromtimestamp(1_533_724_260, UTC).isoformat() == "2018-08-08T10:31:00+00:00"
    assert len({answer["fraud_probability"] for answer in answers}) == 1


def test_a_repeat_returns_the_stored_decision_byte_for_byte(server: Server) -> None:
    sent = transaction(amount=4321.0)
    first = server.call("POST", "/v1/fraud/score", json.dumps(sent).encode())
    again = server.call("POST", "/v1/fraud/score", json.dumps(sent).encode())
    assert first[0] == again[0] == 200
    assert first[1] == again[1]


def test_an_id_used_again_for_another_payment_returns_the_first_decision(server: Server) -> None:
    sent = transaction(amount=10.0)
    first = server.post("/v1/fraud/score", sent)[1]
    assert server.post("/v1/fraud/score", {**sent, "amount": 999_999.0})[1] == first


def test_a_second_transaction_sees_the_first(server: Server) -> None:
    """The only thing that differs between the two is what the card and the terminal did before."""
    customer, terminal = new_id("customer"), new_id("terminal")
    first = decide(server, customer_id=customer, terminal_id=terminal, amount=900.0)
    second = decide(server, customer_id=customer, terminal_id=terminal, amount=900.0)
    assert first["fraud_probability"] != second["fraud_probability"]


def test_a_huge_amount_is_not_approved_and_the_answer_says_why(server: Server) -> None:
    customer, terminal = new_id("customer"), new_id("terminal")
    for _ in range(5):
        decide(server, customer_id=customer, terminal_id=terminal, amount=20.0)
    answer = decide(server, customer_id=customer, terminal_id=terminal, amount=5000.0)
    assert answer["decision"] in ("review", "decline")
    assert answer["reasons"]
    for reason in answer["reasons"]:
        assert set(reason) == {"feature", "value", "contribution", "text"}
        assert reason["contribution"] > 0
        assert reason["text"]
    contributions = [reason["contribution"] for reason in answer["reasons"]]
    assert contributions == sorted(contributions, reverse=True)
    assert any("amount" in reason["feature"] for reason in answer["reasons"])


def test_each_item_of_a_batch_has_its_own_result_or_error(server: Server) -> None:
    good, also_good = transaction(), transaction()
    negative, nameless = transaction(amount=-1), transaction(customer_id="")
    late = transaction(timestamp="2999-01-01T00:00:00Z")
    status, answer, _ = server.post(
        "/v1/fraud/score:batch", {"transactions": [good, negative, "not an object", nameless, also_good, late]}
    )
    assert status == 200
    results = answer["results"]
    assert [result.get("transaction_id") for result in results] == [
        good["transaction_id"], None, None, None, also_good["transaction_id"], None,
    ]  # fmt: skip
    assert [result["error"]["field"] for result in results if "error" in result] == [
        "transactions[1].amount", "transactions[2]", "transactions[3].customer_id", "transactions[5].timestamp",
    ]  # fmt: skip
    assert {result["error"]["kind"] for result in results if "error" in result} == {"invalid_input"}


def test_a_repeated_id_inside_a_batch_gets_one_decision(server: Server) -> None:
    one = transaction(amount=77.0)
    status, answer, _ = server.post("/v1/fraud/score:batch", {"transactions": [one, {**one, "amount": 5.0}, one]})
    assert status == 200
    assert answer["results"][0] == answer["results"][1] == answer["results"][2]


def test_later_items_of_a_batch_see_the_earlier_ones_as_single_requests_would(server: Server) -> None:
    def same_card() -> list[dict[str, Any]]:
        customer, terminal = new_id("customer"), new_id("terminal")
        return [transaction(customer_id=customer, terminal_id=terminal, amount=60.0 * (i + 1)) for i in range(4)]

    together = server.post("/v1/fraud/score:batch", {"transactions": same_card()})[1]["results"]
    one_by_one = [server.post("/v1/fraud/score", one)[1] for one in same_card()]
    assert [a["fraud_probability"] for a in together] == [b["fraud_probability"] for b in one_by_one]


def test_ids_are_echoed_and_foreign_ones_replaced(server: Server) -> None:
    good = server.post("/v1/fraud/score", transaction(), X_Request_Id="order-17", traceparent=TRACE)[2]
    assert (good["x-request-id"], good["traceparent"]) == ("order-17", TRACE)
    bad = server.post("/v1/fraud/score", transaction(), X_Request_Id="a b", traceparent=TRACE.replace("4b", "zz"))[2]
    assert re.fullmatch(r"[0-9a-f]{32}", bad["x-request-id"])
    assert "traceparent" not in bad


def test_an_error_carries_the_request_id_in_header_and_body(server: Server) -> None:
    status, answer, headers = server.post("/v1/fraud/score", {}, X_Request_Id="order-18", traceparent=TRACE)
    assert status == 400
    assert headers["x-request-id"] == answer["request_id"] == "order-18"
    assert headers["traceparent"] == TRACE


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2", "/nowhere"])
def test_every_other_route_echoes_ids_too(server: Server, path: str) -> None:
    headers = server.call("GET", path, None, {"X-Request-Id": "order-19", "traceparent": TRACE})[2]
    assert (headers["x-request-id"], headers["traceparent"]) == ("order-19", TRACE)


@pytest.mark.parametrize("path", ["/v1/fraud/score", "/v1/fraud/score:batch"])
def test_server_timing_has_the_stages_and_they_add_up_to_less_than_the_budget(server: Server, path: str) -> None:
    body = transaction() if path.endswith("score") else {"transactions": [transaction() for _ in range(8)]}
    headers = server.post(path, body)[2]
    found = dict(re.findall(r"(\w+);dur=([\d.]+)", headers["server-timing"]))
    assert {"queue", *STAGES} <= set(found)
    assert 0 < sum(map(float, found.values())) < BUDGET_MS


def test_the_description_is_openapi_and_its_schemas_hold_for_real_answers(server: Server) -> None:
    document = json.loads(server.get("/openapi.json")[1])
    assert document["openapi"].startswith("3.1")
    assert {"/v1/fraud/score", "/v1/fraud/score:batch"} <= set(document["paths"])
    operation = document["paths"]["/v1/fraud/score"]["post"]
    body, answer = operation["requestBody"]["content"], operation["responses"]["200"]["content"]
    for schema, value in (
        (body["application/json"]["schema"], body["application/json"]["example"]),
        (answer["application/json"]["schema"], decide(server, amount=5000.0)),
    ):
        whole = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator.check_schema(whole)
        jsonschema.validate(value, whole, jsonschema.Draft202012Validator)


def test_the_description_refuses_what_the_server_refuses(server: Server) -> None:
    document = json.loads(server.get("/openapi.json")[1])
    schema = document["paths"]["/v1/fraud/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    for wrong in ({"amount": -1}, {"amount": "1"}, {"customer_id": ""}, {"currency": "eur"}, {"latitude": 91}):
        sent = transaction(**wrong)
        assert not validator.is_valid(sent), wrong
        assert server.post("/v1/fraud/score", sent)[0] == 400


def test_the_page_for_people_names_every_documented_route(server: Server) -> None:
    document = json.loads(server.get("/openapi.json")[1])
    status, page, headers = server.call("GET", "/docs", None)
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    for path in document["paths"]:
        assert path in page.decode()


def test_the_published_budgets_count_what_was_answered(server: Server) -> None:
    before = json.loads(server.get("/v2/budgets")[1])["pipelines"]["fraud"]
    decide(server)
    after = json.loads(server.get("/v2/budgets")[1])["pipelines"]["fraud"]
    assert after["requests"] == before["requests"] + 1
    assert after["budget_ms"] == BUDGET_MS
    assert set(after["stages"]) >= STAGES


def test_one_connection_carries_many_requests(server: Server) -> None:
    with RawClient(server.http_port) as client:
        for _ in range(50):
            sent = transaction()
            answer = client.request("POST", "/v1/fraud/score", json.dumps(sent).encode()).answer()
            assert answer is not None
            assert answer.json()["transaction_id"] == sent["transaction_id"]
