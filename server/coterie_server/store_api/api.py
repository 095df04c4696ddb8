"""The store's API: every method of the interface as a route below ``/v1``, for clients in any language.

Each request is checked, handed to the store, and answered, without anything in between: the routes that agents and
runners use all the time are as fast as the server can read and write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from starlette.routing import Route as StarletteRoute

from coterie.errors import CoterieError
from coterie.store import wire
from coterie.store.base import Store
from coterie_server.store_api import learning, traces, waiting, whole, work
from coterie_server.store_api.answers import send_empty, send_json
from coterie_server.store_api.listings import MEDIA_TYPE, BrokenOffError, stream
from coterie_server.store_api.refusals import Refusal, answer_to
from coterie_server.store_api.requests import Call, ClientGoneError, Receive, Scope, Send, body_of
from coterie_server.store_api.routes import ROUTES, Access, Route

logger = logging.getLogger(__name__)

Authorize = Callable[[Scope, Sequence[Access]], None]
"""Raises ``Refusal`` when the request's token does not allow what a route needs."""

DECLARED = (work, traces, waiting, learning, whole)
"""The modules whose import declares the routes."""


def store_routes(store: Callable[[], Store], authorize: Authorize) -> list[StarletteRoute]:
    """The routes, for an app. ``store`` gives the store when a request comes: it may be opened after the app is made."""
    endpoints = [
        StarletteRoute(route.path, Endpoint(route, store, authorize), methods=[route.method]) for route in ROUTES
    ]
    # The queue and the spans are asked for all the time, so they are looked at first.
    return sorted(endpoints, key=lambda route: route.path not in _OFTEN)


class Endpoint:
    """One route, as an ASGI app."""

    def __init__(self, route: Route, store: Callable[[], Store], authorize: Authorize) -> None:
        self._route = route
        self._store = store
        self._authorize = authorize

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        route = self._route
        started = False

        async def noting(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        call = Call(self._store(), scope, receive, noting if route.answers or route.paged else send)
        try:
            self._authorize(scope, route.access)
            if route.query:
                body = await body_of(receive)
                request = route.reader.of_query(scope["query_string"]) if route.reader else None
            else:
                body = await body_of(receive)
                request = route.reader.of_body(body) if route.reader else None
            subject: Any = call if route.answers else call.store
            if route.paged and MEDIA_TYPE in call.header(b"accept").encode():
                await stream(call, route, request)
                return
            answer = await (route.handle(subject) if route.reader is None else route.handle(subject, request))
            if route.answers:
                return
            encoded = None if route.answer is None else wire.encode(answer)
        except ClientGoneError:
            return
        except BrokenOffError:
            return
        except (CoterieError, Refusal, OverflowError, UnicodeError) as error:
            if started:
                raise
            status, told = answer_to(error)
            await send_json(call, told, status=status)
            return
        if encoded is None:
            await send_empty(call)
        else:
            await send_json(call, encoded)


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
