"""The description of the typed HTTP API, made from the contracts themselves, and a page that shows it without scripts.

`/openapi.json` is OpenAPI 3.1; its schemas come from msgspec, so they cannot differ from what is decoded.
"""

from __future__ import annotations

import json
from functools import cache
from html import escape
from typing import Any

import msgspec

from serve.ingress.wire.fraud_http import MAX_TRANSACTIONS, FailedItem
from serve.ingress.wire.fraud_records import TRANSACTION_FIELDS, Labels
from serve.pipelines.fraud.contract import MAX_ID_CHARS, Decision, Transaction
from serve.pipelines.fraud.records import LabelResult
from serve.version import VERSION

_EXAMPLE = {
    "transaction_id": "t-1001",
    "customer_id": "c-42",
    "terminal_id": "m-7",
    "amount": 512.3,
    "timestamp": "2018-08-08T10:31:00Z",
}
_LABELS_EXAMPLE = {"labels": [{"transaction_id": "t-1001", "fraud": True}]}
_STATUSES = {
    "400": "A field is wrong; `error` names it, what was got and what is allowed.",
    "413": "The body is over the published size.",
    "429": "Refused before any work was done: the queue is full or the budget cannot be met. See Retry-After.",
    "503": "Too many requests in flight, or starting or draining. See Retry-After.",
    "504": "No answer within the deadline.",
}


@cache
def openapi() -> dict[str, Any]:
    """The document behind `/openapi.json`."""
    (transaction, decision, failed, labels, labelled), schemas = msgspec.json.schema_components(
        [Transaction, Decision, FailedItem, Labels, LabelResult], ref_template="#/components/schemas/{name}"
    )
    many = {"type": "array", "items": transaction, "minItems": 1, "maxItems": MAX_TRANSACTIONS}
    batch = {"type": "object", "properties": {"transactions": many}, "required": ["transactions"]}
    results = {"type": "object", "properties": {"results": {"type": "array", "items": {"anyOf": [decision, failed]}}}}
    labelled_all = {"type": "object", "properties": {"results": {"type": "array", "items": labelled}}}
    about = {"type": "object", "properties": {name: {} for name in TRANSACTION_FIELDS}}
    found = {"allOf": [decision, {"type": "object", "properties": {"transaction": about}}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headroom", "version": VERSION},
        "paths": {
            "/v1/fraud/score": _post("Score a card transaction", transaction, decision, _EXAMPLE),
            "/v1/fraud/score:batch": _post(
                "Score many, each with its own result or error", batch, results, {"transactions": [_EXAMPLE]}
            ),
            "/v1/fraud/decisions/{transaction_id}": {
                "get": _operation_on("transaction_id", "Look a decision up, with its reasons", _ok(found))
            },
            "/v1/fraud/labels": _post("Say what transactions turned out to be", labels, labelled_all, _LABELS_EXAMPLE),
            "/v1/fraud/customers/{customer_id}": {
                "delete": _operation_on("customer_id", "Erase everything about a customer", None)
            },
            "/v1/fraud/shadow": {
                "get": {"summary": "How the version in shadow would have decided", "responses": {"200": _ok({})}}
            },
            "/v2/budgets": {"get": {"summary": "Measured against budget, per stage", "responses": {"200": _ok({})}}},
            "/v2/health/ready": {"get": {"summary": "Ready to answer", "responses": {"200": {"description": "Ready"}}}},
        },
        "components": {"schemas": schemas},
    }


def _post(summary: str, body: Any, answer: Any, example: Any) -> dict[str, Any]:
    responses = {status: {"description": text} for status, text in _STATUSES.items()}
    timeout = {"name": "X-Request-Timeout-Ms", "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}}
    content = {"application/json": {"schema": body, "example": example}}
    return {
        "post": {
            "summary": summary,
            "parameters": [timeout],
            "requestBody": {"required": True, "content": content},
            "responses": {"200": _ok(answer), **responses},
        }
    }


def _operation_on(name: str, summary: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "maxLength": MAX_ID_CHARS}}
    done = {"204": {"description": "Unreadable from now on"}} if answer is None else {"200": answer}
    errors = {"404": {"description": "Not known, expired or erased"}} if answer is not None else {}
    return {
        "summary": summary,
        "parameters": [parameter],
        "responses": {**done, **errors, "503": {"description": "The feature store does not answer."}},
    }


def _ok(schema: Any) -> dict[str, Any]:
    return {"description": "OK", "content": {"application/json": {"schema": schema}}}


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#f4f6f8;border-radius:4px}
code{padding:.1em .3em}pre{padding:.8rem;overflow:auto}
h2{margin-top:2.2rem;border-top:1px solid #d8dee4;padding-top:1.2rem}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #e4e8ec;padding:.35rem .5rem;text-align:left}
.verb{color:#fff;background:#1a6fb0;border-radius:4px;padding:.1em .5em;font-size:.8em;margin-right:.5em}
"""


@cache
def docs_page() -> str:
    """`/docs`: the same document for people, in one page without scripts or anything from elsewhere."""
    document = openapi()
    parts = [_operation(path, verb, body) for path, item in document["paths"].items() for verb, body in item.items()]
    schemas = [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Headroom {VERSION}: HTTP API</title>"
        f"<style>{_STYLE}</style><h1>Headroom {VERSION}: HTTP API</h1>"
        "<p>The same as <a href=/openapi.json>/openapi.json</a> (OpenAPI 3.1). Models also answer the Open Inference "
        "Protocol at <code>/v2/models/{name}/infer</code>; gRPC has reflection switched on.</p>"
        + "".join(parts)
        + "<h2>Schemas</h2>"
        + "".join(schemas)
    )


def _operation(path: str, verb: str, body: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{status}<td>{escape(response['description'])}" for status, response in body["responses"].items()
    )
    example = ""
    if "requestBody" in body:
        text = json.dumps(body["requestBody"]["content"]["application/json"]["example"], indent=2)
        example = f"<p>Example</p><pre>{escape(text)}</pre>"
    title = f"<h2><span class=verb>{verb.upper()}</span><code>{escape(path)}</code></h2>"
    return f"{title}<p>{escape(body['summary'])}</p>{example}<table><tr><th>Status<th>Meaning{rows}</table>"


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{field}</code><td>{'required' if field in required else ''}"
        f"<td><code>{escape(_rule(rule))}</code>"
        for field, rule in schema.get("properties", {}).items()
    )
    return f"<h3 id={name}>{name}</h3><table>{rows}</table>"


def _rule(rule: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in rule.items() if key not in ("default", "title")})
