"""What every request passes, in and out: token, limits, figures, and errors as answers.

It is the only thing between uvicorn and a route, and takes a few microseconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

from coterie.errors import CoterieError
from coterie.store import wire
from coterie.vocabulary import new_id
from coterie_server.drain import MESSAGE, Drain
from coterie_server.gateway.errors import in_clients_form
from coterie_server.parts import PARTS, Parts
from coterie_server.rates import Rates
from coterie_server.redaction import redacted
from coterie_server.refusals import Refused, body_too_large, error_body, unauthorized
from coterie_server.tokens import CALLER, Caller

logger = logging.getLogger("coterie.server")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_TO_ALL = frozenset({"/health", "/ready", "/openapi.json", "/docs"})
"""Paths for which no token is asked: they tell nothing about what is kept."""

ROUTE = "coterie.route"
"""The key of the ASGI scope under which a request's route is told for the figures, since paths may hold ids."""
ASKS_ITSELF = "/gateway/"
"""Below it the gateway refuses unknown tokens itself, and all errors have the form that the client's SDK reads."""


class Edge:
    """An ASGI app around another."""

    def __init__(self, app: App, parts: Parts) -> None:
        self._app = app
        self._parts = parts
        self._limit = parts.settings.limits.body_bytes
        self._tokens = parts.tokens
        self._rates = Rates(parts.settings.limits)
        self._metrics = parts.metrics
        self._drain = parts.drain
        self._open = OPEN_TO_ALL | ({"/metrics"} if parts.settings.metrics_without_token else frozenset())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        scope[PARTS] = self._parts
        status = 0
        caller: Caller | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            token, length = _token_and_length(scope["headers"])
            path = scope["path"]
            if path not in self._open:
                known = None if token is None else self._tokens.caller(token)
                if known is not None:
                    self._rates.enter(known.id)
                    scope[CALLER] = caller = known
                elif not path.startswith(ASKS_ITSELF):
                    raise _unknown(token)
            if length > self._limit:
                raise body_too_large(self._limit)
            await self._app(scope, _Body(receive, self._limit, self._drain).receive, answer)
        except Exception as error:
            if status:
                raise
            await _answer_error(error, scope, answer)
        finally:
            if caller is not None:
                self._rates.leave(caller.id)
            self._metrics.answered(scope.get(ROUTE, "(none)"), scope["method"], status, time.perf_counter() - began)


class _Body:
    """The body of a request on its way in."""

    def __init__(self, receive: Receive, limit: int, drain: Drain) -> None:
        self._receive = receive
        self._left = limit
        self._limit = limit
        self._drain = drain
        self._whole = False
        self._told = False

    async def receive(self) -> Message:
        if self._whole:
            return await self._watch()
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise body_too_large(self._limit)
            self._whole = not message.get("more_body")
        return message

    async def _watch(self) -> Message:
        if self._told:
            return await self._receive()
        if self._drain.begun.is_set():
            self._told = True
            return dict(MESSAGE)
        message = await self._drain.watch(self._receive)
        self._told = message["type"] == MESSAGE["type"]
        return message


def _token_and_length(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str | None, int]:
    """The token that a request shows, as OpenAI's or Anthropic's clients send it, and the length that it announces."""
    token: str | None = None
    length = 0
    for name, value in headers:
        if name == b"authorization":
            kind, _, rest = value.partition(b" ")
            if kind.lower() == b"bearer":
                token = rest.strip().decode("latin-1")
        elif name == b"x-api-key" and token is None:
            token = value.strip().decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() else 0
    return token, length


def _unknown(token: str | None) -> Refused:
    if token is None:
        return unauthorized(
            "No token. Send `Authorization: Bearer TOKEN`; Coterie's own clients take it from COTERIE_TOKEN."
        )
    return unauthorized(
        "This token is unknown, expired or revoked. `coterie token list` on the server tells which there are."
    )


async def _answer_error(error: Exception, scope: Scope, send: Send) -> None:
    """Answer with an error. A fault of ours is logged with a number that the client gets as well."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, Refused):
        status, kind, message = error.status, error.kind, error.message
        headers += error.headers
    elif isinstance(error, CoterieError):
        status = next((status for kind, status in wire.STATUS_OF.items() if isinstance(error, kind)), 400)
        kind, message = type(error).__name__, redacted(str(error))
        if status == 503:
            headers.append((b"retry-after", b"1"))
    else:
        number = new_id("fault")
        logger.error("%s: %s %s", number, scope["method"], quote(scope["path"]), exc_info=error)
        status = 500
        kind, message = "InternalError", f"A fault of the server; its log tells more under {number}."
    if scope["path"].startswith(ASKS_ITSELF):
        body = in_clients_form(scope["path"], status, message)
    else:
        body = error_body(kind, message)
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
