"""Sending a call to a model server: which one, again if it fails before its first byte, and elsewhere if all are down."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import orjson

from coterie import conventions as names
from coterie.capture.api import Api
from coterie.vocabulary import SpanEvent, now_ns
from coterie_server.gateway.errors import unavailable
from coterie_server.gateway.metrics import GatewayMetrics
from coterie_server.gateway.recording import FALLBACK_EVENT, Call
from coterie_server.gateway.requests import Request
from coterie_server.gateway.servers import Server, Servers, in_order
from coterie_server.gateway.settings import GatewaySettings

_log = logging.getLogger("coterie.gateway")

IDLE_SECONDS = 4
"""How long an unused connection is kept: less than a uvicorn server does, lest it close one that is being used again."""
TRIED_AGAIN = frozenset({429, 503})
"""What a server answers when it has too much to do, or is about to start or end."""
NOT_THERE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
"""The server cannot be reached, or broke off."""
_FORWARDED = frozenset(
    {
        b"accept",
        b"anthropic-beta",
        b"anthropic-version",
        b"content-type",
        b"idempotency-key",
        b"openai-beta",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-request-id",
        *(name.encode() for name in (names.HEADER_CALL_ID, names.HEADER_ROLLOUT_ID, names.HEADER_ATTEMPT_ID)),
        names.HEADER_ROLE.encode(),
    }
)
"""Request headers that go on to the server. All others, keys among them, are for the gateway alone."""
GATEWAY_HEADER = "x-coterie-gateway"
"""Names the gateways that a request came through, lest an endpoint that names the gateway itself make a loop."""


@dataclass(slots=True)
class Reply:
    """What a server answered."""

    response: aiohttp.ClientResponse
    server: Server
    body: bytes | None
    """None for a stream, which is still to be read; then ``close`` it."""

    def close(self) -> None:
        """End a stream, whether it was read to its end or not."""
        if self.body is None:
            self.server.in_flight -= 1
            self.response.close()


class UpstreamClient:
    """The connections to model servers."""

    def __init__(self, settings: GatewaySettings, servers: Servers, metrics: GatewayMetrics, gateway_id: str) -> None:
        self._settings = settings
        self._servers = servers
        self._metrics = metrics
        self._gateway_id = gateway_id
        self._session: aiohttp.ClientSession | None = None
        self._probes: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Open the pool of connections, and look after servers that are down."""
        settings = self._settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=settings.connect_seconds, sock_read=settings.silence_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 18,
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )
        self._probes = asyncio.create_task(self._look_after_servers(), name="gateway health")

    async def close(self) -> None:
        """Close all connections."""
        if self._probes is not None:
            self._probes.cancel()
            await asyncio.gather(self._probes, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def send(self, call: Call, request: Request, path: str, headers: Mapping[bytes, bytes]) -> Reply:
        """Send a call until a server answers, and read its answer unless it is a stream.

        ``call`` notes each try. What comes back may be an error that the server answers: it is the client's.

        Raises:
            Refusal: 503, no server can be reached.
        """
        assert call.target is not None
        reply = await self._tries(call, request, path, headers)
        if reply is not None and reply.response.status != 503:
            return reply
        fallback = call.target.fallback
        if fallback is None:
            if reply is not None:
                return reply
            raise unavailable(
                f"No model server of {_whose(call)} can be reached: "
                f"{', '.join(server.name for server in call.target.servers)}.",
                code="model_server_unavailable",
                retry_after=2,
            )
        self._metrics.fell_back(call.target.policy)
        call.fell_back = True
        call.events.append(SpanEvent(FALLBACK_EVENT, now_ns(), {"server": fallback.name}))
        asked = request.hidden.not_asked(request.body)
        request = Request(asked, orjson.dumps(asked), request.hidden)
        try:
            return await self._once(call, fallback, request, path, headers)
        except NOT_THERE as error:
            raise unavailable(
                f"No model server of {_whose(call)} can be reached, nor can the fall-back {fallback.name}: "
                f"{_said(error)}.",
                code="model_server_unavailable",
                retry_after=2,
            ) from None

    async def _tries(self, call: Call, request: Request, path: str, headers: Mapping[bytes, bytes]) -> Reply | None:
        """The first answer that is no invitation to try again; None when nobody answers."""
        assert call.target is not None
        target, settings = call.target, self._settings
        rollout_id = call.by.rollout_id
        tried: set[Server] = set()
        pause = settings.first_pause_seconds
        while True:
            candidates = in_order(target.servers, rollout_id)
            if not candidates:
                if target.fallback is not None:
                    return None
                candidates = list(target.servers)  # all are down: perhaps no longer
            server = next((one for one in candidates if one not in tried), candidates[0])
            last = call.tries + 1 >= settings.tries
            wait: float | None = None
            try:
                reply = await self._once(call, server, request, path, headers)
            except NOT_THERE as error:
                server.failed(_said(error), at_once=isinstance(error, aiohttp.ClientConnectorError))
                self._metrics.tried("connection")
                why, status = _said(error), None
                # One that the server had closed while it lay unused says nothing of the server.
                wait = 0.0 if isinstance(error, aiohttp.ServerDisconnectedError) and call.tries == 1 else None
                if last:
                    call.tried(why)
                    return None
            else:
                status = reply.response.status
                if status == 503:
                    server.failed("it answers 503", at_once=False)
                else:
                    server.answered()
                if status not in TRIED_AGAIN:
                    return reply
                wait = _retry_after(reply.response)
                if last or (wait is not None and wait > settings.longest_pause_seconds):
                    return reply
                reply.response.release()
                self._metrics.tried(str(status))
                why = f"it answers {status}"
            call.tried(why, status=status)
            tried.add(server)
            if any(one not in tried for one in in_order(target.servers, rollout_id)):
                continue  # another one may answer at once
            tried.clear()
            await asyncio.sleep(wait if wait is not None else pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, settings.longest_pause_seconds)

    async def _once(
        self, call: Call, server: Server, request: Request, path: str, headers: Mapping[bytes, bytes]
    ) -> Reply:
        assert self._session is not None
        call.server = server
        call.tries += 1
        raw = request.raw
        if server.upstream.model is not None:
            call.body = {**request.body, "model": server.upstream.model}
            raw = orjson.dumps(call.body)
        else:
            call.body = request.body
        call.sent_bytes = len(raw)
        server.in_flight += 1
        streams = False
        try:
            response = await self._session.post(
                server.url(path), data=raw, headers=self._headers(call, server, headers), allow_redirects=False
            )
            streams = response.content_type == "text/event-stream" and response.status < 400
            if streams:
                return Reply(response, server, None)
            try:
                return Reply(response, server, await response.read())
            except BaseException:
                response.close()
                raise
        finally:
            if not streams:
                server.in_flight -= 1

    def _headers(self, call: Call, server: Server, headers: Mapping[bytes, bytes]) -> dict[str, str]:
        sent = {name.decode(): value.decode("latin-1") for name, value in headers.items() if name in _FORWARDED}
        sent["content-type"] = "application/json"
        # What comes is passed on as it is.
        sent["accept-encoding"] = "identity"
        sent[names.HEADER_CALL_ID] = call.by.call_id
        sent[GATEWAY_HEADER] = self._gateway_id
        key = server.key
        if call.what is Api.MESSAGES and call.target is not None and call.target.how.messages == "anthropic":
            sent.setdefault("anthropic-version", "2023-06-01")
            if key:
                sent["x-api-key"] = key
        elif key:
            sent["authorization"] = f"Bearer {key}"
        return sent

    async def _look_after_servers(self) -> None:
        while True:
            await asyncio.sleep(self._settings.health_seconds)
            several = {one for how in self._settings.policies.values() if len(how.backends) > 1 for one in how.backends}
            due = [one for one in self._servers.all() if one.failures or one.upstream in several]
            await asyncio.gather(*(self._look(server) for server in due))
            for server in self._servers.all():
                self._metrics.server(server.name, up=server.up)

    async def _look(self, server: Server) -> None:
        assert self._session is not None
        headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
        timeout = aiohttp.ClientTimeout(total=self._settings.health_seconds)
        try:
            async with self._session.get(server.url("/models"), headers=headers, timeout=timeout) as response:
                if response.status < 500:
                    server.answered()
                else:
                    server.failed(f"it answers {response.status}", at_once=False)
        except NOT_THERE as error:
            server.failed(_said(error), at_once=True)
        except Exception:  # noqa: BLE001 - the next look may succeed, and the others must not miss theirs
            _log.exception("Model server %s could not be asked how it is.", server.name)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    given = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(given))
    except ValueError:  # none, or a date
        return None


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _whose(call: Call) -> str:
    policy = call.target.policy if call.target is not None else None
    return f"policy {policy!r}" if policy is not None else "the default upstream"
