"""What an HTTP request asks for and may have: its route, who asks, its ids and its deadline.

Enters: a parsed head, once for all requests that share it, then each request. Leaves: a `RequestContext`, or the error
that keeps it out. Pure but for the ids; called by the listener.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from serve.batching.arrival import Route
from serve.budgets.deadline import LOAD_BUDGET_MS, OTHER_BUDGET_MS, limited, parse_timeout_ms, tightest
from serve.context import Principal, RequestContext, RequestIds, TenantId, is_request_id, is_traceparent
from serve.errors import HeadroomError
from serve.ingress.admission import Admission
from serve.ingress.http_request import HttpRequest, RequestHead

_CONTROL_PATHS = b"/v2/repository/models/"

Routes = Mapping[tuple[bytes, bytes], Route]
"""(method, exact target) → route."""


class Understood(Struct, frozen=True, eq=False):
    """What a request's head says, as long as the routes are `routes`."""

    routes: Routes
    route: Route | None
    budget_ms: float
    request_id: str | None = None
    traceparent: str | None = None
    who: tuple[TenantId, Principal] | None = None
    timeout_ms: float | None = None
    error: HeadroomError | None = None


def understand(head: RequestHead, routes: Routes, admission: Admission) -> Understood:
    """By the exact target; a query or percent-encoding, which no usual client sends, costs a second look."""
    route = routes.get((head.method, head.target))
    if route is None and (b"?" in head.target or b"%" in head.target):
        route = routes.get((head.method, unquote_to_bytes(head.path)))
    budget_ms = _other_budget_ms(head) if route is None else route.budget_ms
    request_id, traceparent = head.header(b"x-request-id"), head.header(b"traceparent")
    if request_id is not None and not is_request_id(request_id):
        request_id = None
    if traceparent is not None and not is_traceparent(traceparent):
        traceparent = None
    try:
        who = admission.admit(head.header(b"host"), head.header(b"origin"))
        timeout = head.header(b"x-request-timeout-ms")
        timeout_ms = None if timeout is None else parse_timeout_ms(timeout)
    except HeadroomError as error:
        return Understood(routes, route, budget_ms, request_id, traceparent, error=error)
    return Understood(routes, route, budget_ms, request_id, traceparent, who, timeout_ms)


def _other_budget_ms(head: RequestHead) -> float:
    return LOAD_BUDGET_MS if head.target.startswith(_CONTROL_PATHS) else OTHER_BUDGET_MS


def context_of(request: HttpRequest, understood: Understood, ids: RequestIds) -> RequestContext:
    """The request's context; its deadline is the tightest of what the head and the pipeline allow."""
    arrived_ns = request.arrived_ns
    deadline = tightest(arrived_ns, understood.budget_ms, header_ms=understood.timeout_ms)
    request_id = understood.request_id or ids.make()
    if understood.who is None:
        return RequestContext(request_id, deadline, arrived_ns, understood.traceparent)
    return RequestContext(request_id, deadline, arrived_ns, understood.traceparent, *understood.who)


def limit_by_body(request: HttpRequest, route: Route | None, context: RequestContext) -> HeadroomError | None:
    """Tightens the deadline by the limit that the body carries, if it carries one; gives what is wrong with it."""
    if route is None:
        return None
    try:
        timeout_us = route.codec.timeout_us(request)
    except HeadroomError as error:
        return error
    context.deadline = limited(context.deadline, request.arrived_ns, timeout_us)
    return None
