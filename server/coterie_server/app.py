"""The server as an ASGI app: the store's API below ``/v1``, OTLP at ``/v1/traces``, the gateway below ``/gateway``.

How a route gets what it needs, cheaply:

- The parts (store, settings, metrics, drain) with ``parts_of(scope)``; one that is made here gets them as arguments.
- Who calls with ``require(scope, Scope.RUNNER, …)``, which raises ``Refused`` (403). The edge has checked the token by then.
- Limits: the body that ``receive`` gives never exceeds ``limits.body_bytes``: it raises ``Refused`` (413). A token's rate
  and its requests at once are counted by the edge as well.
- Errors: a ``Refused`` or a ``CoterieError`` that a route raises before it answers becomes the answer, anything else a 500
  with a number that the log explains.
- The end: a route that calls ``receive`` after the whole body was read, to notice that its client goes away, gets
  ``drain.MESSAGE`` once when the server begins to stop. A long poll answers then with what it has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from coterie_server.edge import Edge
from coterie_server.gateway import Gateway, gateway_settings
from coterie_server.health import ROUTES as HEALTH
from coterie_server.otlp.http import otlp_routes
from coterie_server.parts import Parts
from coterie_server.refusals import error_body
from coterie_server.store_api.api import store_routes
from coterie_server.store_api.openapi import describe
from coterie_server.tokens import Caller, require


def create_app(parts: Parts) -> FastAPI:
    """The app of one process. Its lifespan starts and stops what runs beside the requests; the store stays open.

    Raises:
        ConfigError: a setting of the gateway is wrong.
    """
    gateway = Gateway(
        parts.store,
        gateway_settings(parts.settings.gateway),
        allows=_allows(parts),
        registry=parts.metrics.registry,
    )

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            gateway.start()
            stack.push_async_callback(gateway.stop, parts.settings.drain_seconds)
            yield

    app = FastAPI(
        title="Coterie",
        version=version("coterie"),
        lifespan=running,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _as_json},
    )
    app.state.parts = parts
    app.router.routes += [
        *otlp_routes(),
        *store_routes(lambda: parts.store, _authorize),
        *HEALTH,
        Mount("/gateway", gateway),
    ]
    app.add_middleware(
        Edge, settings=parts.settings, tokens=parts.tokens, metrics=parts.metrics, drain=parts.drain
    )
    _describe(app)
    return app


def _authorize(scope: MutableMapping[str, Any], access: Sequence[str]) -> None:
    require(scope, *access)


def _allows(parts: Parts) -> Any:
    def allows(token: str, scope: str) -> bool | None:
        caller: Caller | None = parts.tokens.caller(token)
        return None if caller is None else scope in caller.allowed

    return allows


async def _as_json(request: Request, error: Exception) -> Response:
    """What the router itself refuses: there is no such path, or it takes another method."""
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        kind, message = "UnknownPathError", f"There is nothing at {path}. /docs lists what there is."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "another method")
        kind, message = "MethodNotAllowedError", f"{path}: this path takes {allowed}."
    else:
        kind, message = "BadRequestError", str(error.detail)
    return Response(error_body(kind, message), error.status_code, error.headers, "application/json")


def _describe(app: FastAPI) -> None:
    """Put the store's routes into the app's OpenAPI document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(get_openapi(title=app.title, version=app.version, routes=app.routes))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
