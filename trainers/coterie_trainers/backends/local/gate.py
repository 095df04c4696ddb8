"""An ASGI middleware for a stock ``vllm serve``: policy versions, and the pause in which weights change.

vLLM loads it into the API server with ``--middleware``; it reaches the engine through ``app.state``. Completions wait
at the gate while weights change, so every answer comes from one version, which its headers name. Adapters change without a
pause: each version has a name of its own. The driver's calls under ``/coterie/`` need the token of the environment variable
``COTERIE_GATE_TOKEN``.

    GET  /coterie/policy    {"version": 3, "in_flight": 0, "whole": true}
    POST /coterie/weights   {"version": 4, "seconds": 60}: drains, receives the weights from the trainer, opens again
    POST /coterie/adapter   {"policy": "coder", "version": 4, "folder": "/…"}: loads it as coder@4, unloads old ones
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from coterie.conventions import HEADER_POLICY_VERSION, HEADER_POLICY_VERSION_END
from coterie_trainers.backends.local.served_adapters import ServedAdapter, ServedAdapters

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Paths whose answers depend on the weights."""
TOKEN_VARIABLE = "COTERIE_GATE_TOKEN"  # noqa: S105
_LOOK_SECONDS = 0.2
_VERSION = HEADER_POLICY_VERSION.encode()
_VERSION_END = HEADER_POLICY_VERSION_END.encode()


class PolicyGate:
    """Admits completions, counts them, and keeps them out while weights change."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Stand in front of ``app``."""
        self._app = app
        self._token = os.environ.get(TOKEN_VARIABLE, "")
        self._version = 0
        self._in_flight = 0
        self._whole = True
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._changing = asyncio.Lock()
        self._adapters = ServedAdapters()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path in GENERATING:
            if self._adapters:
                await self._generate_with_adapter(scope, receive, send)
            else:
                await self._generate(scope, receive, send)
        elif scope["type"] == "http" and path.startswith("/coterie/"):
            await self._manage(path, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._open.wait()
        if not self._whole:
            error = "the last weights did not arrive whole; publish again or restart the backend"
            await _answer(send, 503, {"error": {"message": error, "type": "weights_not_whole"}})
            return
        admitted = self._version
        self._in_flight += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, _with_versions(send, admitted, lambda: self._version))
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def _generate_with_adapter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that names an adapter goes to the version that it names, else to the newest; others to the model."""
        body = await _body(receive)
        request = _request_in(body)
        adapter = self._adapters.named(str(request.get("model")))
        if adapter is None:
            await self._generate(scope, _again(body, receive), send)
            return
        with self._adapters.in_use(adapter):
            called = json.dumps({**request, "model": adapter.name}).encode()
            await self._app(
                scope,
                _again(called, receive),
                _with_versions(send, adapter.version, lambda: adapter.version),
            )
        state = scope["app"].state
        await self._adapters.unload_old(state.engine_client, state.openai_serving_models)

    async def _manage(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        sent = dict(scope["headers"]).get(b"authorization", b"").decode(errors="replace")
        if not self._token or not hmac.compare_digest(sent, f"Bearer {self._token}"):
            await _answer(send, 401, {"error": "this path is for the trainer that started the server"})
        elif path == "/coterie/policy":
            state = {"version": self._version, "in_flight": self._in_flight, "whole": self._whole}
            await _answer(send, 200, state)
        elif path in ("/coterie/weights", "/coterie/adapter") and scope["method"] == "POST":
            asked = json.loads(await _body(receive))
            state = scope["app"].state
            engine = state.engine_client
            try:
                if path == "/coterie/weights":
                    work = self._receive_weights(engine, **asked)
                else:
                    work = self._load_adapter(engine, state.openai_serving_models, **asked)
                figures = await _while_alive(engine, work)
            except Exception as error:  # noqa: BLE001 - whatever it was, the driver must be told
                await _answer(send, 500, {"error": f"{type(error).__name__}: {error}"})
            else:
                await _answer(send, 200, figures)
        else:
            await _answer(send, 404, {"error": f"no such path: {path}"})

    async def _receive_weights(self, engine: Any, *, version: int, seconds: float) -> dict[str, float]:
        async with self._changing:
            began = time.monotonic()
            self._open.clear()
            try:
                # Pausing the engine is not enough: a request may be admitted and not yet have reached the engine,
                # which would then answer it with the new weights.
                await asyncio.wait_for(self._idle.wait(), seconds)
                await engine.pause_generation(mode="wait")
                drained = time.monotonic()
                try:
                    # Half-loaded weights are no version: until a transfer succeeds, nothing is answered.
                    self._whole = False
                    arguments = {"seconds": seconds}
                    await engine.collective_rpc("receive_weights", timeout=seconds, kwargs=arguments)
                    await engine.reset_prefix_cache()
                    self._version, self._whole = version, True
                finally:
                    await engine.resume_generation()
            finally:
                self._open.set()
            return {"version": version, "drain": drained - began, "seconds": time.monotonic() - began}

    async def _load_adapter(
        self, engine: Any, models: Any, *, policy: str, version: int, folder: str
    ) -> dict[str, float]:
        async with self._changing:
            began = time.monotonic()
            await self._adapters.add(engine, models, ServedAdapter(policy, version, folder))
            return {"version": version, "seconds": time.monotonic() - began}


def _with_versions(send: Send, admitted: int, now: Callable[[], int]) -> Send:
    """Adds the headers that name the version at admission and when the answer began."""

    async def send_with_versions(message: Message) -> None:
        if message["type"] == "http.response.start":
            versions = [(_VERSION, str(admitted).encode()), (_VERSION_END, str(now()).encode())]
            message["headers"] = [*message.get("headers", ()), *versions]
        await send(message)

    return send_with_versions


def _request_in(body: bytes) -> dict[str, Any]:
    """A request; empty if it is malformed, about which vLLM says more."""
    with contextlib.suppress(ValueError):
        request = json.loads(body)
        if isinstance(request, dict):
            return request
    return {}


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, to be read once more; after it comes what else the client sends."""
    unread = [body]

    async def receive_again() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    return receive_again


async def _while_alive(engine: Any, work: Coroutine[Any, Any, dict[str, float]]) -> dict[str, float]:
    """The work's result. vLLM leaves calls to an engine that was killed waiting for ever: this raises instead."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=_LOOK_SECONDS)
        if engine.errored and not task.done():
            # Not awaited: what the task still calls in its end would wait for the engine again.
            task.cancel()
            raise ConnectionError("the engine process has ended")
    return task.result()


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
