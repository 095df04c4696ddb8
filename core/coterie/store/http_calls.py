"""Requests to a server's store API: connections, time limits, trying again, and errors as the local stores raise them.

A request that fails because the server is away (no connection, a broken one, 503, 429) is sent again after a growing,
random pause, for ``retry_seconds`` in all. Every request of the store API may be repeated: writes are idempotent by
id, and a request for work has an id of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from coterie import errors
from coterie.errors import ConfigError, CoterieError, StoreError, StoreUnavailableError
from coterie.store import wire

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""How long the connection may take."""
ANSWER_SECONDS = 60.0
"""How long an answer may take to begin, beyond the time that a request asks the server to wait."""
WHOLE_ANSWER_SECONDS = 300.0
"""How long the rest of it may take."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
CONNECTIONS = 64
"""Connections at once, for each event loop. Requests that wait for something to happen have others, without a limit."""


class RequestTooLargeError(StoreError):
    """The server takes no request as large as this one. Nothing was changed."""


class Calls:
    """Sends requests to one server. Usable from any thread and event loop; each loop has connections of its own."""

    def __init__(
        self, url: str, *, token: str | None, retry_seconds: float, ca_file: str | os.PathLike[str] | None
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._retry_seconds = retry_seconds
        self._tls = _tls_context(ca_file) if url.startswith("https:") else True
        self._urls: dict[str, URL] = {}
        self._lock = threading.Lock()
        self._lines: dict[asyncio.AbstractEventLoop, _Lines] = {}
        self._process = os.getpid()
        self._closed = False
        self._away = False

    async def get(self, path: str, parameters: Mapping[str, object] | None = None) -> Any:
        """The decoded answer of a GET; parameters that are None are left out."""
        url = self._url_of(path)
        if parameters:
            given = {name: _in_url(value) for name, value in parameters.items() if value is not None}
            url = url.with_query(given)
        return await self._call("GET", url, None, ANSWER_SECONDS, waits=False, found=None)

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        poll_seconds: float = 0.0,
        answer_seconds: float = ANSWER_SECONDS,
        found: Callable[[], Awaitable[Any]] | None = None,
    ) -> Any:
        """The decoded answer of a POST that the server may take ``poll_seconds`` to give; None for an empty one.

        ``found`` is asked before a request is sent again, for one that must not be done twice: it gives the outcome
        if it was done although its answer was lost, else None.
        """
        seconds = poll_seconds + answer_seconds
        return await self._call("POST", self._url_of(path), body, seconds, waits=poll_seconds > 0, found=found)

    async def post_once(self, path: str, body: bytes) -> Any:
        """The same without trying again.

        Raises:
            OSError, TimeoutError, aiohttp.ClientError: the server is away.
        """
        with suppress(_TryAgain):
            return await self._send("POST", self._url_of(path), body, ANSWER_SECONDS, waits=False)

    async def close(self) -> None:
        """Close all connections; requests that are under way end with a StoreError. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            lines = list(self._lines.items())
            self._lines.clear()
        if self._process != os.getpid():
            return
        own = asyncio.get_running_loop()
        for loop, line in lines:
            if loop is own:
                await line.close()
            elif loop.is_closed():
                line.drop()
            else:
                with suppress(RuntimeError):  # It was closed just now.
                    asyncio.run_coroutine_threadsafe(line.close(), loop)

    # Machinery

    async def _call(
        self,
        method: str,
        url: URL,
        body: bytes | None,
        seconds: float,
        *,
        waits: bool,
        found: Callable[[], Awaitable[Any]] | None,
    ) -> Any:
        give_up_at: float | None = None
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = await self._send(method, url, body, seconds, waits=waits)
            except (OSError, TimeoutError, aiohttp.ClientError, _TryAgain) as failure:
                if self._closed:
                    raise self._closed_error() from None
                if isinstance(failure, (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL)):
                    raise _not_trusted(self.url, failure) from failure
                now = time.monotonic()
                give_up_at = now + self._retry_seconds if give_up_at is None else give_up_at
                wait = random.uniform(pause / 2, pause)
                if isinstance(failure, _TryAgain) and failure.after_seconds is not None:
                    wait = max(wait, failure.after_seconds)
                if now + wait > give_up_at:
                    raise self._given_up(failure) from failure
                self._note_that_it_is_away(failure)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._lines_here().closing.wait(), wait)
                if found is not None and (outcome := await found()) is not None:
                    return outcome
            else:
                if self._away:
                    self._away = False
                    logger.info("store %s: it answers again.", self.url)
                return answer

    async def _send(self, method: str, url: URL, body: bytes | None, seconds: float, *, waits: bool) -> Any:
        lines = self._lines_here()
        session = lines.waiting if waits else lines.working
        try:
            # Two limits of our own: aiohttp's would be set anew with each piece that comes.
            async with asyncio.timeout(seconds):
                response = await session.request(method, url, data=body, timeout=_CONNECT, allow_redirects=False)
            async with response:
                if response.content.is_eof():
                    content = await response.read()
                else:
                    async with asyncio.timeout(WHOLE_ANSWER_SECONDS):
                        content = await response.read()
        except RuntimeError as error:
            if self._closed:  # aiohttp: "Session is closed"
                raise self._closed_error() from None
            raise StoreError(f"store {self.url}: {error}") from error
        if response.status >= 300:
            raise self._error_of(response.status, content, response.headers)
        try:
            return wire.decode(content) if content else None
        except ValueError as error:
            raise StoreError(
                f"store {self.url}: what answers there is no `coterie serve`: {error}. Check host, port and path."
            ) from error

    def _lines_here(self) -> _Lines:
        loop = asyncio.get_running_loop()
        lines = self._lines.get(loop)
        if lines is None or self._process != os.getpid():
            lines = self._new_lines(loop)
        return lines

    def _new_lines(self, loop: asyncio.AbstractEventLoop) -> _Lines:
        if self._process != os.getpid():
            raise StoreError(
                f"store {self.url}: it was opened in process {self._process}, and this is its fork {os.getpid()}. "
                "Connect again in the child process."
            )
        with self._lock:
            if self._closed:
                raise self._closed_error()
            for ended in [other for other in self._lines if other.is_closed()]:
                self._lines.pop(ended).drop()
            lines = self._lines[loop] = _Lines(self._session(CONNECTIONS), self._session(0))
        return lines

    def _session(self, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=self._tls, keepalive_timeout=30.0),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _url_of(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self.url + path)
        return url

    def _error_of(self, status: int, content: bytes, headers: Mapping[str, str]) -> Exception:
        kind, message = _told(content)
        if status in (429, 502, 503, 504):
            # A gateway before the server says 502 or 504 when the server is away.
            return _TryAgain(message or f"it answered with status {status}", _seconds(headers.get("Retry-After")))
        if status == 413:
            return RequestTooLargeError(message or f"store {self.url}: the request is larger than the server takes.")
        if status in (401, 403):
            return ConfigError(
                f"store {self.url}: {message or 'the server refused the token.'} Give a token that may do this, as "
                "connect(…, token=…) or in COTERIE_TOKEN."
            )
        error = getattr(errors, kind, StoreError) if kind else StoreError
        if not (isinstance(error, type) and issubclass(error, CoterieError)):
            error = StoreError
        return error(message or f"store {self.url}: it answered with status {status}: {content[:200]!r}")

    def _given_up(self, failure: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"store {self.url}: it has been away for {self._retry_seconds:g} s: {_reason(failure)}. Whether the last "
            "request was done is unknown; it is safe to repeat it. Check that the server runs (`coterie serve`) and "
            "that this address reaches it."
        )

    def _closed_error(self) -> StoreError:
        return StoreError(f"store {self.url}: it is closed. Connect again.")

    def _note_that_it_is_away(self, failure: Exception) -> None:
        if not self._away:
            self._away = True
            logger.warning(
                "store %s: it is away (%s). Trying again for %g s.", self.url, _reason(failure), self._retry_seconds
            )


@dataclass(slots=True)
class _Lines:
    """The connections of one event loop."""

    working: aiohttp.ClientSession
    waiting: aiohttp.ClientSession
    """For requests that wait for something to happen: however many there are, others need not queue behind them."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def close(self) -> None:
        self.closing.set()
        await self.working.close()
        await self.waiting.close()

    def drop(self) -> None:
        """Let go of connections whose event loop has ended: nothing can be done on them any more."""
        for session in (self.working, self.waiting):
            with suppress(RuntimeError):
                session.detach()


class _TryAgain(Exception):
    """The server is there and asks to come again."""

    def __init__(self, message: str, after_seconds: float | None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


_CONNECT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)


def _tls_context(ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """Verifies the server's certificate: by this file, else by SSL_CERT_FILE, else by what the system trusts."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else os.fspath(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"CA file {ca_file}: it cannot be read as certificates: {error}. Give a PEM file.") from error


def _not_trusted(url: str, failure: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"store {url}: its certificate is not trusted: {failure}. Name the file of the CA that signed it in "
        "SSL_CERT_FILE, or use the name that the certificate is for."
    )


def _told(content: bytes) -> tuple[str | None, str | None]:
    """Class and message of an error in the form of the store API; None for what another server said."""
    try:
        told = wire.decode(content)["error"]
        return str(told["type"]), str(told["message"])
    except (ValueError, TypeError, KeyError):
        return None, None


def _reason(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return "no answer in time"
    return str(failure).rstrip(".") or type(failure).__name__


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None


def _in_url(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
