"""The gateway as an ASGI application, to be mounted at ``/gateway``.

POST /gateway[/rollout/ID/attempt/ID][/role/NAME]/v1/chat/completions, completions, responses, embeddings
POST /gateway[/…]/anthropic/v1/messages
GET  /gateway[/…]/v1/models
GET  /gateway/policies
POST /gateway/policies/NAME/pause    {"drain_seconds": 60}
POST /gateway/policies/NAME/resume   {"version": 4}
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import orjson
from prometheus_client import CollectorRegistry

from coterie.store.base import Store
from coterie.vocabulary import new_id
from coterie_server.gateway import replies
from coterie_server.gateway.attribution import Resource, read_path
from coterie_server.gateway.calls import Calls
from coterie_server.gateway.errors import Refusal, bad_request, dialect_of
from coterie_server.gateway.messages import Caller
from coterie_server.gateway.metrics import GatewayMetrics
from coterie_server.gateway.pauses import Doors
from coterie_server.gateway.replies import ClientGone, Receive, Scope, Send
from coterie_server.gateway.routing import Routing
from coterie_server.gateway.servers import Servers
from coterie_server.gateway.settings import GatewaySettings
from coterie_server.gateway.spool import SpanWriter
from coterie_server.gateway.upstream import UpstreamClient

_log = logging.getLogger("coterie.gateway")

AGENT, TRAINER = "agent", "trainer"
"""Scopes of tokens: who may call models, who may pause policies."""
Allows = Callable[[str, str], bool | None]
"""From a token and a scope: True if it may, False if it may not, None if there is no such token."""
_DRAIN_SECONDS = 60.0
_LARGEST_ORDER_BYTES = 10_000
_POLICY = re.compile(r"/policies/([^/]+)/(pause|resume)")


class Gateway:
    """The gateway to the models of one store.

    Args:
        store: where endpoints and rollouts are read, and calls recorded.
        settings: how it is to work.
        allows: who may use it.
        registry: where its figures go.
        processes: how many gateways listen on one port. What a policy's pause and a rollout's budget are about is kept in
            each alone, so of several none can be paused, and each grants a budget of its own.
    """

    def __init__(
        self,
        store: Store,
        settings: GatewaySettings,
        *,
        allows: Allows,
        registry: CollectorRegistry,
        processes: int = 1,
    ) -> None:
        self._processes = processes
        self._settings = settings
        self._allows = allows
        self._id = new_id("gw")
        self._servers = Servers()
        self._doors = Doors()
        self._metrics = GatewayMetrics(registry)
        self._routing = Routing(store, settings, self._servers)
        self._writer = SpanWriter(store, settings.spool, self._metrics.waiting_spans.set)
        self._upstream = UpstreamClient(settings, self._servers, self._metrics, self._id)
        self._calls = Calls(
            store,
            settings,
            self._routing,
            self._servers,
            self._upstream,
            self._writer,
            self._doors,
            self._metrics,
            self._id,
        )

    def start(self) -> None:
        """Begin, in the running event loop.

        Raises:
            ConfigError: the spool's folder cannot be written.
        """
        self._writer.start()
        self._upstream.start()

    async def stop(self, drain_seconds: float = 10.0) -> None:
        """Take no more calls, let those under way end, write their records. Before the store is closed."""
        await self._calls.drain(drain_seconds)
        await self._upstream.close()
        await self._writer.close(drain_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway serves HTTP, not {scope['type']}")
        path = scope["path"].partition("/gateway")[2] or scope["path"]
        try:
            await self._handle(path, scope, receive, send)
        except Refusal as refusal:
            await replies.refuse(send, refusal, dialect_of(path))
        except ClientGone:
            pass

    async def _handle(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if path == "/policies" or path.startswith("/policies/"):
            self._admit(headers, TRAINER)
            await self._policies(path, scope["method"], receive, send)
            return
        place = read_path(path)
        token = self._admit(headers, AGENT)
        wanted = "GET" if place.what is Resource.MODELS else "POST"
        if scope["method"] != wanted:
            raise Refusal(405, "invalid_request_error", f"{path} takes {wanted} only.", headers={"allow": wanted})
        if place.what is Resource.MODELS:
            await self._models(send)
            return
        await self._calls.take(place, headers, Caller(token, _own_address(scope)), receive, send)

    def _admit(self, headers: Mapping[bytes, bytes], scope: str) -> str:
        """The caller's token.

        Raises:
            Refusal: 401, there is none or it is unknown; 403, it is not for this.
        """
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token:
            token = headers.get(b"x-api-key", b"").decode("latin-1")
        allowed = self._allows(token.strip(), scope) if token else None
        if allowed is None:
            raise Refusal(
                401,
                "authentication_error",
                "The gateway's key is a token of this Coterie server, as Authorization: Bearer TOKEN or x-api-key. "
                + ("This one is not known here." if token else "The request has none."),
                code="invalid_api_key",
            )
        if not allowed:
            raise Refusal(
                403,
                "permission_error",
                f"This token may not do that: it lacks the scope {scope!r}.",
                code="scope_missing",
            )
        return token

    async def _models(self, send: Send) -> None:
        endpoints = await self._routing.models()
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "coterie"} for name in sorted(endpoints)]
        await replies.whole(send, 200, [replies.JSON_TYPE], orjson.dumps({"object": "list", "data": listed}))

    # Policies

    async def _policies(self, path: str, method: str, receive: Receive, send: Send) -> None:
        if path == "/policies" and method == "GET":
            await replies.whole(send, 200, [replies.JSON_TYPE], orjson.dumps(await self._states()))
            return
        found = _POLICY.fullmatch(path)
        if found is None or method != "POST":
            raise bad_request(f"There is no {method} {path} at the gateway.", code="not_found", status=404)
        policy, order = unquote(found[1]), await _order(receive)
        known = {endpoint.policy for endpoint in (await self._routing.models()).values()} | {*self._settings.policies}
        if policy not in known:
            raise bad_request(
                f"There is no policy {policy!r}; there is {', '.join(sorted(known)) or 'none'}.",
                code="policy_not_found",
                status=404,
            )
        state = await (self._pause(policy, order) if found[2] == "pause" else self._resume(policy, order))
        await replies.whole(send, 200, [replies.JSON_TYPE], orjson.dumps(state))

    async def _pause(self, policy: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        seconds = order.get("drain_seconds", _DRAIN_SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 3600:
            raise bad_request("'drain_seconds' must be a number from 0 to 3600.")
        if self._processes > 1:
            raise Refusal(
                409,
                "conflict_error",
                f"This server has {self._processes} processes, of which a pause would reach one. Run the gateway of a "
                "policy that is trained with workers: 1.",
                code="several_processes",
            )
        door = self._doors.of(policy)
        limit = self._settings.longest_pause_of_policy_seconds
        drained = await door.pause(drain_seconds=seconds, at_most_seconds=limit)
        return {"policy": policy, "paused": True, "drained": drained, "in_flight": door.in_flight}

    async def _resume(self, policy: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
        version = order.get("version")
        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 0):
            raise bad_request("'version' must be a whole number from 0.")
        door = self._doors.of(policy)
        door.resume(version)
        return {"policy": policy, "paused": False, "version": door.version}

    async def _states(self) -> Mapping[str, Any]:
        endpoints = {endpoint.policy: endpoint for endpoint in (await self._routing.models()).values()}
        states = {}
        for policy in sorted({*endpoints, *self._settings.policies}):
            door, endpoint = self._doors.of(policy), endpoints.get(policy)
            states[policy] = {
                "paused": door.paused,
                "in_flight": door.in_flight,
                "waiting": door.waiting,
                "version": door.version if door.version is not None else endpoint and endpoint.version,
            }
        servers = {one.name: {"up": one.up, "in_flight": one.in_flight} for one in self._servers.all()}
        return {"policies": states, "servers": servers}


async def _order(receive: Receive) -> Mapping[str, Any]:
    raw = await replies.read_all(receive, _LARGEST_ORDER_BYTES)
    try:
        order = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is no JSON: {error}.") from None
    if not isinstance(order, dict):
        raise bad_request("The body must be a JSON object.")
    return order


def _own_address(scope: Scope) -> str | None:
    """Where this server can be reached from its own machine."""
    host, port = scope.get("server") or ("", None)
    if port is None:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(str(host), host)  # noqa: S104 - listening on it is others' choice
    return f"{scope.get('scheme', 'http')}://{host}:{port}"
