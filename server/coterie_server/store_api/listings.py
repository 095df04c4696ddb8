"""Whole listings as a stream of lines, a page at a time: the server holds one page of them, however long they are."""

from __future__ import annotations

import dataclasses
from typing import Any

from coterie.errors import CoterieError
from coterie.store import wire
from coterie_server.redaction import redacted
from coterie_server.refusals import error_body
from coterie_server.store_api.answers import send_piece, start_stream
from coterie_server.store_api.requests import Call
from coterie_server.store_api.routes import Route
from coterie_server.store_api.watch import ClientWatch

MEDIA_TYPE = b"application/x-ndjson"
ITEMS_AT_ONCE = 200
"""Of a stream, in memory."""


async def stream(call: Call, route: Route, query: Any) -> None:
    """Answer with all items of a listing from its cursor on, one a line.

    An error half-way is the last line, ``{"error": …}``, and the answer does not end properly: who reads it can tell.
    """
    query = dataclasses.replace(query, limit=min(query.limit, ITEMS_AT_ONCE))
    async with ClientWatch(call.receive) as watch:
        page = await route.handle(call.store, query)
        await start_stream(call, MEDIA_TYPE)
        while True:
            await send_piece(call, b"".join([wire.encode(item) + b"\n" for item in page.items]))
            if page.cursor is None:
                break
            try:
                page = await route.handle(call.store, dataclasses.replace(query, after=page.cursor))
            except CoterieError as error:
                await send_piece(call, error_body(type(error).__name__, redacted(str(error))) + b"\n")
                raise
        watch.only_note()
        await send_piece(call, b"", last=True)
