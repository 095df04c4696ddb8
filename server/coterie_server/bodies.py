"""Bodies of requests: whole, and unpacked within the limit."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from coterie_server.refusals import Refused, body_too_large

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def whole_body(receive: Receive) -> bytes:
    """The whole body of a request, as it came. The edge's ``receive`` holds it within the limit.

    Raises:
        Refused: 413, it is too large.
        ClientDisconnect: the client went away before it had sent all.
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if part := message.get("body"):
            parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def unpacked(packed: bytes, encoding: str, *, limit: int) -> bytes:
    """What was packed, if the Content-Encoding says that it is. Never takes more memory than the limit, whatever a few
    bytes would unpack to.

    Raises:
        Refused: 413, it is larger than ``limit`` bytes; 415, it is packed in another way; 400, it is no such data.
    """
    if encoding in ("", "identity"):
        return packed
    if encoding not in _WINDOW:
        raise Refused(
            415,
            "UnsupportedMediaTypeError",
            f"Content-Encoding {encoding!r} is not known here; gzip, deflate and none are.",
        )
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        body = unpacker.decompress(packed, limit + 1)
    except zlib.error as error:
        raise Refused(400, "BadRequestError", f"The body is no {encoding} data: {error}.") from None
    if len(body) > limit:
        raise body_too_large(limit)
    if not unpacker.eof:
        raise Refused(400, "BadRequestError", f"The body breaks off: its {encoding} data is not complete.")
    return body
