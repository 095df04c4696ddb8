"""Spans on their way from a request to the disk."""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from coterie_server.otlp.spans import Taken, read_spans
from coterie_server.parts import Parts
from coterie_server.refusals import Refused

LONG_BYTES = 512 * 1024
"""A larger request is read in a thread, so that the others go on meanwhile."""
SPANS_AT_ONCE = 2000
"""In one transaction. A request with more of them is not one write: it is repeated whole if a part of it failed."""


async def take(parts: Parts, body: bytes) -> Taken:
    """Read the spans of a request and keep them. Those that it took are on disk when it returns.

    Raises:
        Refused: 400, it is no ``ExportTraceServiceRequest``.
        StoreUnavailableError: the store cannot be written. Sending it again doubles nothing.
    """
    try:
        taken = read_spans(body) if len(body) < LONG_BYTES else await asyncio.to_thread(read_spans, body)
    except DecodeError as error:
        raise Refused(400, "BadRequestError", f"The body is no ExportTraceServiceRequest: {error}.") from None
    spans = taken.spans
    for start in range(0, len(spans), SPANS_AT_ONCE):
        await parts.store.add_spans(spans[start : start + SPANS_AT_ONCE])
    parts.metrics.spans(len(spans), taken.rejected)
    return taken
