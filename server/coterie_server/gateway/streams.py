"""Passing a streamed answer on as it comes, and hearing it for the record."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from coterie.capture.api import Api
from coterie_server.gateway.recording import event_data, streamed_answer
from coterie_server.gateway.token_ids import Hidden

_log = logging.getLogger("coterie.gateway")

_END_OF_EVENT = re.compile(rb"\r?\n\r?\n")
_LAST_EVENTS = re.compile(
    rb'data:\s*\[DONE\]|"finish_reason":\s*"|"type":\s*"(?:response\.(?:completed|incomplete|failed)|message_delta|message_stop)"'
)
"""What tells a client that the answer is whole."""
_TELLING = (b"token_ids", b"logprobs", b"sglext")
"""In an event without any of these there is nothing to hide."""


class Stream:
    """One streamed answer.

    Args:
        what: the API it belongs to.
        hidden: what the client is not to see. If nothing, and unless ``hold_end``, the bytes go on untouched.
        hold_end: keep back the events that tell the client that the answer is whole, until ``held`` gives them: so that
            what must be on disk by then is.
    """

    def __init__(self, what: Api, hidden: Hidden, *, hold_end: bool) -> None:
        self._what = what
        self._hidden = hidden
        self._hold_end = hold_end
        self._untouched = not hidden and not hold_end
        self._heard: list[bytes] = []
        self._rest = b""
        self._held: list[bytes] = []

    async def pieces(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What the client gets at once."""
        async for chunk in chunks:
            piece = self._take(chunk)
            if piece:
                yield piece

    def held(self) -> bytes:
        """What the client gets at the end: the last events, and a rest that no empty line ended."""
        rest, self._rest = self._rest, b""
        if rest:
            self._heard.append(rest)
        return b"".join([*self._held, self._shown(rest)])

    def answer(self) -> Mapping[str, Any]:
        """The body that would have come unstreamed, as far as it came."""
        try:
            return streamed_answer(self._what, _END_OF_EVENT.split(b"".join([*self._heard, self._rest])))
        except Exception:  # noqa: BLE001 - events of unforeseen form reach the client all the same
            _log.exception("The events of a streamed answer could not be put together.")
            return {}

    def _take(self, chunk: bytes) -> bytes:
        if self._untouched:
            self._heard.append(chunk)
            return chunk
        data = self._rest + chunk if self._rest else chunk
        shown: list[bytes] = []
        start = 0
        for end in _END_OF_EVENT.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            self._heard.append(event)
            if self._hold_end and (self._held or _LAST_EVENTS.search(event)):
                self._held.append(self._shown(event))
            else:
                shown.append(self._shown(event))
        self._rest = data[start:]
        return b"".join(shown)

    def _shown(self, event: bytes) -> bytes:
        if not self._hidden or not any(one in event for one in _TELLING):
            return event
        data = event_data(event)
        if data is None:
            return event
        if self._hidden.nothing_left(data):
            return b""
        others = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
        return b"\n".join([*others, b"data: " + self._hidden.strip(data), b"", b""])


def error_in(body: bytes) -> str:
    """The message of an error's body, as a person would read it."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:2000].decode(errors="replace")
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error)
