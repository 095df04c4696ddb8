"""The server as an ASGI app: the store's API below ``/v1``, OTLP at ``/v1/traces``, the gateway below ``/gateway``.

How a route, which is an ASGI app, gets what it needs, cheaply:

- The parts (store, settings, metrics, drain) with ``parts_of(scope)``.
- Who calls with ``require(scope, Scope.RUNNER, …)``, which raises ``Refused`` (403). The edge has checked the token by then.
- Limits: the body that ``receive`` gives never exceeds ``limits.body_bytes``: it raises ``Refused`` (413). A token's rate
  and its requests at once are counted by the edge as well.
- Errors: a ``Refused`` or a ``CoterieError`` that a route raises before it answers becomes the answer, anything else a 500
  with a number that the log explains.
- The end: a route that calls ``receive`` after the whole body was read, to notice that its client goes away, gets
  ``drain.MESSAGE`` once when the server begins to stop. A long poll answers then with what it has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coterie_server.edge import ROUTE, App, Edge, Receive, Scope, Send
from coterie_server.gateway import Gateway, gateway_settings, spool_beside
from coterie_server.health import ROUTES as HEALTH
from coterie_server.otlp.http import otlp_routes
from coterie_server.pages import ROUTES as PAGES
from coterie_server.parts import Parts
from coterie_server.refusals import Refused, error_body
from coterie_server.store_api.api import store_routes


def create_app(parts: Parts) -> App:
    """The app of one process. Its lifespan starts and stops what runs beside the requests; the store stays open.

    Raises:
        ConfigError: a setting of the gateway is wrong.
    """
    gateway = Gateway(
        parts.store,
        gateway_settings(parts.settings.gateway, spool=spool_beside(parts.tokens.path, parts.settings.store)),
        allows=_allows(parts),
        registry=parts.metrics.registry,
        processes=parts.settings.workers,
    )
    pages = _pages(gateway, parts.settings.drain_seconds)
    return Edge(_Paths([*otlp_routes(), *store_routes(), *HEALTH], gateway, pages), parts)


class _Paths:
    """Hands a request to its route. No path of these has a variable part, so one look-up finds it; going through them one
    by one would take longer than a small request does.
    """

    def __init__(self, routes: Iterable[Route], gateway: App, pages: App) -> None:
        self._gateway = gateway
        self._pages = pages
        self._routes: dict[str, dict[str, App]] = {}
        for route in routes:
            of_path = self._routes.setdefault(route.path, {})
            of_path |= dict.fromkeys(route.methods or (), route.app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        methods = self._routes.get(path)
        if methods is not None:
            route = methods.get(scope["method"])
            if route is None:
                allowed = ", ".join(sorted(methods))
                raise Refused(
                    405,
                    "MethodNotAllowedError",
                    f"{path} takes {allowed}, not {scope['method']}.",
                    headers={"allow": allowed},
                )
            scope[ROUTE] = path
            await route(scope, receive, send)
        elif path.startswith("/gateway/"):
            scope[ROUTE] = "/gateway"
            await self._gateway(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


def _pages(gateway: Gateway, drain_seconds: float) -> Starlette:
    """What people look at, and the lifespan."""

    @asynccontextmanager
    async def running(_app: Starlette) -> AsyncIterator[None]:
        gateway.start()
        try:
            yield
        finally:
            await gateway.stop(drain_seconds)

    pages = Starlette(routes=PAGES, lifespan=running, exception_handlers={HTTPException: _refused})
    pages.router.redirect_slashes = False
    return pages


async def _refused(request: Request, error: Exception) -> Response:
    """What the router of the pages refuses."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        body = error_body("UnknownPathError", f"There is nothing at {where}. /docs lists what there is.")
    else:
        body = error_body("BadRequestError", f"{where}: {error.detail}")
    return Response(body, error.status_code, error.headers, "application/json")


def _allows(parts: Parts) -> Callable[[str, str], bool | None]:
    def allows(token: str, scope: str) -> bool | None:
        caller = parts.tokens.caller(token)
        return None if caller is None else scope in caller.allowed

    return allows
