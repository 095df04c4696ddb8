"""An ASGI middleware for a stock ``vllm serve``: policy versions, and the pause in which weights change.

vLLM loads it into the API server with ``--middleware``; it reaches the engine through ``app.state``. Completions wait
at the gate while weights change, so every answer comes from one version, which its headers name. The driver's calls
under ``/coterie/`` need the token of the environment variable ``COTERIE_GATE_TOKEN``.

    GET  /coterie/policy    {"version": 3, "in_flight": 0, "whole": true}
    POST /coterie/weights   {"version": 4, "seconds": 60}: drains, receives the weights from the trainer, opens again
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from coterie.conventions import HEADER_POLICY_VERSION, HEADER_POLICY_VERSION_END

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path in GENERATING:
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
        admitted = str(self._version).encode()
        self._in_flight += 1
        self._idle.clear()

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                versions = [(_VERSION, admitted), (_VERSION_END, str(self._version).encode())]
                message["headers"] = [*message.get("headers", ()), *versions]
            await send(message)

        try:
            await self._app(scope, receive, send_with_version)
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def _manage(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        sent = dict(scope["headers"]).get(b"authorization", b"").decode(errors="replace")
        if not self._token or not hmac.compare_digest(sent, f"Bearer {self._token}"):
            await _answer(send, 401, {"error": "this path is for the trainer that started the server"})
        elif path == "/coterie/policy":
            state = {"version": self._version, "in_flight": self._in_flight, "whole": self._whole}
            await _answer(send, 200, state)
        elif path == "/coterie/weights" and scope["method"] == "POST":
            asked = json.loads(await _body(receive))
            try:
                engine = scope["app"].state.engine_client
                figures = await _while_alive(engine, self._receive_weights(engine, **asked))
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
