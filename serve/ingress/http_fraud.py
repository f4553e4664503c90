"""The fraud pipeline's routes that are not hot: decisions looked up, labels, erasures, the report on the shadow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from serve.context import RequestContext
from serve.ingress.blocking import BlockingWork
from serve.ingress.http_app import Handler
from serve.ingress.wire.content_encoding import decompress
from serve.ingress.wire.fraud_records import checked_id, found_json, labels_of, results_json
from serve.pipelines.fraud.records import FraudRecords


def fraud_handlers(
    records: FraudRecords,
    blocking: BlockingWork,
    shadow_report: Callable[[], Mapping[str, Any]],
    max_body_bytes: int,
) -> list[tuple[str, str, Handler]]:
    """(method, path, handler) of each."""

    async def look_up(request: Request) -> Response:
        transaction_id = checked_id("transaction_id", request.path_params["transaction_id"])
        return _json(found_json(await blocking.run(_context(request), lambda: records.look_up(transaction_id))))

    async def label(request: Request) -> Response:
        body = decompress(await request.body(), request.headers.get("content-encoding", ""), max_body_bytes)
        labels, context = labels_of(bytes(body)), _context(request)
        return _json(results_json(await blocking.run(context, lambda: records.label(labels, context))))

    async def erase(request: Request) -> Response:
        customer_id, context = checked_id("customer_id", request.path_params["customer_id"]), _context(request)
        await blocking.run(context, lambda: records.erase(customer_id, context))
        return Response(status_code=204)

    async def shadow(request: Request) -> Response:
        return _json(orjson.dumps(await blocking.run(_context(request), shadow_report)))

    return [
        ("GET", "/v1/fraud/decisions/{transaction_id:path}", look_up),
        ("POST", "/v1/fraud/labels", label),
        ("DELETE", "/v1/fraud/customers/{customer_id:path}", erase),
        ("GET", "/v1/fraud/shadow", shadow),
    ]


def _context(request: Request) -> RequestContext:
    context: RequestContext = request.scope["state"]["context"]
    return context


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
