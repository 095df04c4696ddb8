"""The store's API: every method of the interface as a route below ``/v1``, for clients in any language.

Each request is checked, handed to the store, and answered, without anything in between: the routes that agents and
runners use all the time are as fast as the server can read and write.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect
from starlette.routing import Route as StarletteRoute

from coterie.store import wire
from coterie_server.bodies import whole_body
from coterie_server.parts import parts_of
from coterie_server.refusals import does_not_fit
from coterie_server.store_api import learning, traces, waiting, whole, work
from coterie_server.store_api.answers import send_empty, send_json
from coterie_server.store_api.listings import MEDIA_TYPE, stream
from coterie_server.store_api.requests import Call, Receive, Scope, Send
from coterie_server.store_api.routes import ROUTES, Route
from coterie_server.tokens import require

DECLARED = (work, traces, waiting, learning, whole)
"""The modules whose import declares the routes."""


def store_routes() -> list[StarletteRoute]:
    """The routes, for an app whose edge says who calls, and whose parts are in its state."""
    endpoints = [StarletteRoute(route.path, Endpoint(route), methods=[route.method]) for route in ROUTES]
    # The queue and the spans are asked for all the time, so they are looked at first.
    return sorted(endpoints, key=lambda route: route.path not in _OFTEN)


class Endpoint:
    """One route, as an ASGI app. Errors are for the edge to answer."""

    def __init__(self, route: Route) -> None:
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        route = self._route
        require(scope, *route.scopes)
        call = Call(parts_of(scope).store, scope, receive, send)
        reader = route.reader
        try:
            body = await whole_body(receive)
            request = reader and (reader.of_query(scope["query_string"]) if route.query else reader.of_body(body))
            if route.paged and call.header(b"accept") == MEDIA_TYPE:
                await stream(call, route, request)
                return
            subject: Any = call if route.answers else call.store
            answer = await (route.handle(subject) if reader is None else route.handle(subject, request))
        except ClientDisconnect:
            return
        except (OverflowError, UnicodeError) as error:
            raise does_not_fit(f"A value cannot be stored or looked for: {error}.") from error
        if route.answers:
            return
        if route.answer is None:
            await send_empty(call)
        else:
            await send_json(call, wire.encode(answer))


_OFTEN = frozenset(
    {
        "/v1/spans",
        "/v1/attempts/finish",
        "/v1/attempts/heartbeat",
        "/v1/rollouts/lease",
        "/v1/rollouts",
        "/v1/spans/get",
    }
)
