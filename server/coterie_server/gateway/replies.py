"""Answers to clients, as ASGI sends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from coterie import conventions as names
from coterie_server.gateway.errors import Dialect, Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
_OF_THE_CONNECTION = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"server",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        names.HEADER_CALL_ID.encode(),
    }
)
"""Response headers that are about the connection to the model server, not about the answer; and our own."""


def passed_on(raw_headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A model server's response headers for the client."""
    lowered = ((name.lower(), value) for name, value in raw_headers)
    return [(name, value) for name, value in lowered if name not in _OF_THE_CONNECTION]


async def begin(send: Send, status: int, headers: Headers) -> None:
    """Send status and headers."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def go_on(send: Send, piece: bytes) -> None:
    """Send a piece of the body; more follows."""
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def end(send: Send, piece: bytes = b"") -> None:
    """Send the last piece."""
    await send({"type": "http.response.body", "body": piece})


async def whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole answer."""
    await begin(send, status, [*headers, (b"content-length", str(len(body)).encode())])
    await end(send, body)


async def refuse(send: Send, refusal: Refusal, dialect: Dialect, more: Mapping[str, str] | None = None) -> None:
    """Send a refusal."""
    extra = [(name.encode(), value.encode()) for name, value in {**refusal.headers, **(more or {})}.items()]
    await whole(send, refusal.status, [JSON_TYPE, *extra], refusal.body(dialect))


async def read_all(receive: Receive, limit: int) -> bytes | None:
    """A request's body; None if it is longer than ``limit`` bytes.

    Raises:
        ClientGone: the client went away before its end.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body if len(body) <= limit else None
    pieces, size = [body], len(body)
    while message.get("more_body"):
        if size > limit:
            return None
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
    return b"".join(pieces) if size <= limit else None


class ClientGone(Exception):
    """The client closed the connection."""
