"""The hook in the OpenAI SDK (2.x and 3.x), through which every agent framework's calls go.

Two methods of each client class are wrapped: ``request``, once a call whatever the number of retries, and
``_process_response``, where the raw HTTP response is at hand. Azure's and others' clients inherit both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

from openai import _base_client as sdk
from openai._types import Omit
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.api import api_of
from coterie.capture.call import LLMCall
from coterie.capture.faults import note_fault
from coterie.capture.response_tap import tap
from coterie.capture.rewrite import endpoint_key


def install() -> None:
    """Wrap the SDK's methods. A second call does nothing."""
    if _wrapped:
        return
    for client in (sdk.SyncAPIClient, sdk.AsyncAPIClient):
        request = _async_request if client is sdk.AsyncAPIClient else _sync_request
        process = _async_process_response if client is sdk.AsyncAPIClient else _sync_process_response
        _wrap(client, "request", request)
        _wrap(client, "_process_response", process)


def uninstall() -> None:
    """Put the SDK's own methods back. A second call does nothing."""
    while _wrapped:
        client, name, original, wrapper = _wrapped.pop()
        wrapper.off = True  # type: ignore[attr-defined]
        # Somebody may have wrapped ours since: theirs stays, and finds ours switched off.
        if client.__dict__.get(name) is wrapper:
            setattr(client, name, original)


@dataclass(slots=True)
class _Exchange:
    """One call of ``request`` in progress."""

    call: LLMCall
    options: Any
    """What is sent in place of the caller's options."""
    unread: bool = False
    """True when the answer was handed over unread: its tap ends the call."""
    content: bytes | None = None
    """The answer's body if it was read at once."""


_exchange: ContextVar[_Exchange | None] = ContextVar("coterie_exchange", default=None)
"""The call whose ``request`` runs in this context: leads from ``_process_response`` back to it."""

_wrapped: list[tuple[type, str, Callable[..., Any], Callable[..., Any]]] = []
"""Class, method name, original, wrapper."""


def _wrap(client: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = client.__dict__[name]
    wrapper = wraps(original)(make(original))
    wrapper.off = False  # type: ignore[attr-defined]
    setattr(client, name, wrapper)
    _wrapped.append((client, name, original, wrapper))


def _sync_request(original: Callable[..., Any]) -> Callable[..., Any]:
    def request(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        exchange = None if request.off else _begin(self, options)  # type: ignore[attr-defined]
        token = _exchange.set(exchange)
        try:
            result = original(self, cast_to, exchange.options if exchange else options, **kwargs)
        except BaseException as error:
            if exchange is not None:
                exchange.call.failed(error)
            raise
        finally:
            _exchange.reset(token)
        if exchange is not None:
            _finish(exchange)
        return result

    return request


def _async_request(original: Callable[..., Any]) -> Callable[..., Any]:
    async def request(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        exchange = None if request.off else _begin(self, options)  # type: ignore[attr-defined]
        token = _exchange.set(exchange)
        try:
            result = await original(self, cast_to, exchange.options if exchange else options, **kwargs)
        except BaseException as error:
            if exchange is not None:
                exchange.call.failed(error)
            raise
        finally:
            _exchange.reset(token)
        if exchange is not None:
            _finish(exchange)
        return result

    return request


def _sync_process_response(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_response(self: Any, **kwargs: Any) -> Any:
        _note_response(kwargs)
        return original(self, **kwargs)

    return process_response


def _async_process_response(original: Callable[..., Any]) -> Callable[..., Any]:
    async def process_response(self: Any, **kwargs: Any) -> Any:
        _note_response(kwargs)
        return await original(self, **kwargs)

    return process_response


def _begin(client: Any, options: Any) -> _Exchange | None:
    """Take up a request that is about to leave; None when it is no LLM call, is not to be recorded, or we fail."""
    try:
        api = api_of(options.method, options.url)
        if api is None or not is_instrumentation_enabled():
            return None
        body = _body(options)
        if body is None:
            return None
        call = LLMCall(api, body, provider=_provider(client))
        call.keep_secret(getattr(client, "api_key", None))
        exchange = _Exchange(call, _outgoing(client, options, call))
        call.leaves()
        return exchange
    except Exception:  # noqa: BLE001 - the call goes on as the user wrote it
        note_fault("An LLM call could not be recorded and goes out as it is")
        return None


def _note_response(arguments: Mapping[str, Any]) -> None:
    exchange = _exchange.get()
    if exchange is None:
        return
    try:
        response = arguments["response"]
        exchange.call.responded(response)
        if not arguments["stream"] and response.is_closed:
            exchange.content = response.content
        else:
            tap(response, exchange.call, streamed=bool(arguments["stream"]))
            exchange.unread = True
    except Exception:  # noqa: BLE001 - the answer reaches the user all the same
        note_fault("The response of an LLM call could not be recorded")


def _finish(exchange: _Exchange) -> None:
    if exchange.unread:
        return
    try:
        body = json.loads(exchange.content) if exchange.content else None
    except ValueError:
        body = None
    exchange.call.answered(body if isinstance(body, dict) else None)


def _body(options: Any) -> dict[str, Any] | None:
    """The JSON that the SDK is about to send, ``extra_body`` included; None when it is no mapping."""
    body = options.json_data
    if not isinstance(body, Mapping):
        return None
    return {
        name: value for name, value in {**body, **(options.extra_json or {})}.items() if not isinstance(value, Omit)
    }


def _outgoing(client: Any, options: Any, call: LLMCall) -> Any:
    """A copy of the caller's options with our headers, and with what the call became."""
    outgoing = options.model_copy()
    headers = dict(options.headers) if isinstance(options.headers, Mapping) else {}
    if call.rewritten:
        outgoing.json_data, outgoing.extra_json = dict(call.body), None
    if call.endpoint is not None:
        outgoing.url = call.endpoint.base_url.rstrip("/") + call.api
        outgoing.params = dict.fromkeys(client.default_query, Omit())
        key = endpoint_key(call.endpoint)
        call.keep_secret(key)
        headers = _without_secrets(client, headers) | {"Authorization": f"Bearer {key}"}
    outgoing.headers = headers | call.headers
    return outgoing


_SECRET_HEADER = re.compile(
    "authorization|api-?key|token|secret|cookie|password|credential|openai-(organization|project)", re.IGNORECASE
)
"""Headers that are for the host that the user meant, and for no other."""


def _without_secrets(client: Any, headers: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in headers.items() if not _SECRET_HEADER.search(name)}
    # Azure's client adds a key of its own unless the request has this header.
    leaving_out = ["api-key", *client.default_headers, *headers]
    return kept | {name: Omit() for name in leaving_out if _SECRET_HEADER.search(name)}


def _provider(client: Any) -> str:
    return "azure.ai.openai" if "Azure" in type(client).__name__ else "openai"
