"""Connections of clients that send too much, too slowly, or nothing at all."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from coterie_server.refusals import error_body
from coterie_server.settings import Limits

DISCARDED_LIMITS = 2
"""How much of a body that was refused is read and thrown away, in limits of a body: what a client sends by mistake is over
the limit by some, and all of it must be read before that client reads why it was refused.
"""


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol class for ``uvicorn.Config(http=…)`` with these limits."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})


async def watch_connections(connections: set[Any], limits: Limits) -> None:
    """Close connections that are silent for too long, for ever. uvicorn itself waits for a begun request without end."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(min(limits.silence_seconds / 4, 5.0))
        now = loop.time()
        for connection in list(connections):
            if isinstance(connection, GuardedProtocol):
                connection.close_if_silent(now)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection, within limits."""

    limits: ClassVar[Limits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heard_at = self.loop.time()
        self._stuck_since: float | None = None
        self._asking = False
        """A request has begun to come and is not whole."""
        self._in_headers = False
        self._header_bytes = 0
        self._received_bytes = 0
        self._discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "TooManyConnectionsError", "There are too many connections. Try again later.")

    def data_received(self, data: bytes) -> None:
        """Take what comes, up to the limits."""
        self._heard_at = self.loop.time()
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_headers:
            # Counted as it comes: the parser gives a header only when it is whole, and one may never end.
            self._received_bytes += len(data)
            if self._received_bytes > self.limits.header_bytes and not self.transport.is_closing():
                self._refuse_headers()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._asking = self._in_headers = True
        self._header_bytes = self._received_bytes = self._discarded = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.limits.header_bytes:
            raise _TooLargeError
        super().on_header(name, value)

    def on_url(self, url: bytes) -> None:
        """A part of the address came."""
        self._header_bytes += len(url)
        if self._header_bytes > self.limits.header_bytes:
            raise _TooLargeError
        super().on_url(url)

    def on_headers_complete(self) -> None:
        """All headers came."""
        self._in_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body came. One that was answered before it was whole is read on and thrown away, so that its
        client comes to read the answer; but not for ever.
        """
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > DISCARDED_LIMITS * self.limits.body_bytes:
                self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._asking = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if self._header_bytes > self.limits.header_bytes:
            self._refuse_headers()
        else:
            self._refuse(400, "BadRequestError", f"{msg.rstrip('.')}: it is not as HTTP/1.1 has it.")

    def pause_writing(self) -> None:
        """The client takes the answer more slowly than it comes."""
        self._stuck_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client took some."""
        self._stuck_since = None
        super().resume_writing()

    def close_if_silent(self, now: float) -> None:
        """Close it if its time is up."""
        if self.flow is None or self.transport.is_closing():
            return
        if self.flow.read_paused:  # It is we who do not listen.
            self._heard_at = now
        silent = now - self._heard_at
        if self._stuck_since is not None and now - self._stuck_since > self.limits.silence_seconds:
            self.transport.abort()
        elif self._asking and silent > self.limits.silence_seconds:
            self._refuse(408, "TooSlowError", f"Nothing came for {self.limits.silence_seconds:g} s.")
        elif self._is_idle() and silent > self.limits.idle_seconds:
            self.transport.close()

    def _is_idle(self) -> bool:
        return not self._asking and (self.cycle is None or self.cycle.response_complete)

    def _refuse_headers(self) -> None:
        limit = self.limits.header_bytes
        self._refuse(431, "HeadersTooLargeError", f"Address and headers are larger than {limit} bytes together.")

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer without the app, unless it answers already, and close."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = error_body(kind, message)
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
                + body
            )
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


class _TooLargeError(Exception):
    """Ends the parser's work on a request."""
