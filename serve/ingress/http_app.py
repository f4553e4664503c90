"""The ASGI application for everything that is not hot: health, OIP metadata, budgets, the API's description.

Starlette, because none of this is on a hot path. What it shows comes from a `ServerView`, which the replica implements.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route as StarletteRoute

from serve.context import RequestContext
from serve.errors import HeadroomError, InvalidInput, NotFound, NotReady
from serve.ingress.http_asgi import LABEL
from serve.ingress.openapi import docs_page, openapi
from serve.ingress.status import error_body, http_status
from serve.repository.protobuf_json import as_json

Json = Mapping[str, Any] | list[Any]
Handler = Callable[[Request], Awaitable[Response]]


class ServerView(Protocol):
    """What the server can say about itself. Cheap calls only: they run on the listener's loop."""

    def is_live(self) -> bool: ...

    def is_ready(self) -> bool: ...

    def readiness_problem(self) -> str: ...

    def server_metadata(self) -> Message: ...

    def model_metadata(self, name: str, version: str) -> Message: ...

    def model_config(self, name: str, version: str) -> Message: ...

    def check_model_ready(self, name: str, version: str) -> None: ...

    def model_statistics(self, name: str, version: str) -> Message: ...

    async def repository_index(self, *, only_ready: bool) -> Message: ...

    async def load_model(self, name: str, parameters: Mapping[str, object], context: RequestContext) -> None: ...

    async def unload_model(self, name: str, parameters: Mapping[str, object], context: RequestContext) -> None: ...

    def budgets(self) -> Json: ...

    def metrics_text(self, accept: str) -> tuple[bytes, str]: ...

    def why_closed(self, path: str) -> str | None:
        """Why the pipeline that `path` belongs to cannot answer, where that is so."""
        ...

    def hot_paths(self) -> Mapping[str, str]: ...


def main_app(view: ServerView, of_pipelines: Sequence[tuple[str, str, Handler]] = ()) -> Starlette:
    """The application of the HTTP port; pipelines bring (method, path, handler) of what is theirs and not hot."""
    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    handlers: list[tuple[str, str, Handler]] = [
        *of_pipelines,
        ("GET", "/v2/health/live", _health(view.is_live, view.readiness_problem)),
        ("GET", "/v2/health/ready", _health(view.is_ready, view.readiness_problem)),
        ("GET", "/-/healthz", _health(view.is_ready, view.readiness_problem)),
        ("GET", "/-/routes", _json(lambda _: dict(view.hot_paths()))),
        ("GET", "/v2", _json(lambda _: as_json(view.server_metadata()))),
        ("GET", "/v2/budgets", _json(lambda _: view.budgets())),
        ("POST", "/v2/repository/index", _repository_index(view)),
        ("POST", "/v2/repository/models/{model}/load", _control(view.load_model)),
        ("POST", "/v2/repository/models/{model}/unload", _control(view.unload_model)),
        ("GET", "/openapi.json", _json(lambda _: openapi())),
        ("GET", "/docs", _docs),
    ]
    handlers.append(("GET", "/v2/models/stats", _json(lambda _: as_json(view.model_statistics("", "")))))
    for base in (model, version):
        handlers += [
            ("GET", base + "/stats", _json(lambda request: as_json(view.model_statistics(*_model_of(request))))),
            ("GET", base, _json(lambda request: as_json(view.model_metadata(*_model_of(request))))),
            ("GET", base + "/config", _json(lambda request: as_json(view.model_config(*_model_of(request))))),
            ("GET", base + "/ready", _model_ready(view)),
            ("POST", base + "/infer", _unknown_model(view)),
        ]
    return _application(handlers, view.hot_paths, view.why_closed)


def metrics_app(view: ServerView) -> Starlette:
    """The application of the metrics port."""

    async def metrics(request: Request) -> Response:
        body, content_type = view.metrics_text(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    return _application([("GET", "/metrics", metrics)], dict, lambda path: None)


def _application(
    handlers: list[tuple[str, str, Handler]],
    hot_paths: Callable[[], Mapping[str, str]],
    why_closed: Callable[[str], str | None],
) -> Starlette:
    routes = [StarletteRoute(path, _labelled(path, handler), methods=[method]) for method, path, handler in handlers]

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        allowed = hot_paths().get(request.url.path)
        if error.status_code == 404 and allowed is not None:
            text = f"{request.method} is not allowed here; allowed: {allowed}"
            return _error_response(request, text, 405, {"allow": allowed})
        if error.status_code == 404 and (reason := why_closed(request.url.path)) is not None:
            return await on_known_error(request, NotReady(reason))
        if error.status_code == 404:
            return _error_response(request, f"no route {request.url.path[:200]!r}; see /docs", 404)
        allowed = (error.headers or {}).get("Allow", "another verb")
        text = f"{request.method} is not allowed here; allowed: {allowed}"
        return _error_response(request, text, error.status_code, error.headers)

    async def on_known_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HeadroomError)
        request_id = request.scope["state"]["context"].request_id
        return _Json(error_body(error, request_id), status_code=http_status(error))

    return Starlette(routes=routes, exception_handlers={HTTPException: on_http_error, HeadroomError: on_known_error})


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def _error_response(request: Request, text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    request_id = request.scope["state"]["context"].request_id
    return _Json({"error": text, "request_id": request_id}, status_code=status, headers=headers)


def _labelled(path: str, handler: Handler) -> Handler:
    async def labelled(request: Request) -> Response:
        request.scope[LABEL] = path
        return await handler(request)

    return labelled


def _json(answer: Callable[[Request], Json]) -> Handler:
    async def handler(request: Request) -> Response:
        return _Json(answer(request))

    return handler


def _health(is_fine: Callable[[], bool], problem: Callable[[], str]) -> Handler:
    async def handler(request: Request) -> Response:
        if is_fine():
            return Response(b"", status_code=200)
        raise NotReady(problem())

    return handler


def _model_of(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _model_ready(view: ServerView) -> Handler:
    async def handler(request: Request) -> Response:
        try:
            view.check_model_ready(*_model_of(request))
        except (NotReady, NotFound) as error:
            request_id = request.scope["state"]["context"].request_id
            return _Json(error_body(error, request_id), status_code=400)
        return Response(b"", status_code=200)

    return handler


def _unknown_model(view: ServerView) -> Handler:
    """Infer of a model that is served never comes here: its path is hot."""

    async def handler(request: Request) -> Response:
        view.check_model_ready(*_model_of(request))
        raise NotFound(f"Request for unknown model: '{request.path_params['model'][:128]}' is not found")

    return handler


def _repository_index(view: ServerView) -> Handler:
    async def handler(request: Request) -> Response:
        wanted = await _json_object(request)
        index = await view.repository_index(only_ready=wanted.get("ready") is True)
        return _Json(as_json(index)["models"])

    return handler


def _control(carry_out: Callable[[str, Mapping[str, object], RequestContext], Awaitable[None]]) -> Handler:
    """A load or unload; its parameters are in the body, if it has one."""

    async def handler(request: Request) -> Response:
        parameters = (await _json_object(request)).get("parameters", {})
        if not isinstance(parameters, dict):
            raise InvalidInput("parameters is not a JSON object", field="parameters")
        await carry_out(request.path_params["model"], parameters, request.scope["state"]["context"])
        return Response(b"", status_code=200)

    return handler


async def _json_object(request: Request) -> dict[str, Any]:
    body = await request.body()
    try:
        value = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise InvalidInput("the body is not a JSON object")
    return value


async def _docs(request: Request) -> Response:
    return HTMLResponse(docs_page())
