"""Anthropic's Messages for servers that speak Chat Completions, by LiteLLM's translation.

LiteLLM makes the Chat Completions call itself. It is pointed at this gateway, with the caller's own token, so that the call
is routed, paused, tried again and recorded like every other; what comes back it turns into a Messages answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import orjson

from coterie import conventions as names
from coterie_server.gateway import replies
from coterie_server.gateway.attribution import Attribution
from coterie_server.gateway.errors import Dialect, Refusal, bad_request
from coterie_server.gateway.replies import Send

_log = logging.getLogger("coterie.gateway")

_TAKEN = frozenset(
    {
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
"""The fields of Messages. Others, such as a client's own settings for LiteLLM, do not reach it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and how the gateway calls itself in its name."""

    token: str
    own_address: str | None
    """Such as ``http://127.0.0.1:8700``; None if the server has none."""


async def translated(body: Mapping[str, Any], by: Attribution, caller: Caller, send: Send) -> None:
    """Answer a Messages request through the gateway's own Chat Completions.

    Raises:
        Refusal: LiteLLM is not installed, or what the gateway, the model server or LiteLLM refused.
    """
    if not isinstance(body.get("model"), str) or not isinstance(body.get("max_tokens"), int):
        raise bad_request("'model' must be a string and 'max_tokens' a number.")
    if caller.own_address is None:
        raise Refusal(501, "api_error", "Messages are translated only by a server with a TCP address.")
    litellm = await asyncio.to_thread(_litellm)
    headers = {names.HEADER_CALL_ID: by.call_id}
    asked = {name: value for name, value in body.items() if name in _TAKEN}
    asked["model"] = f"hosted_vllm/{body['model']}"
    try:
        answer = await litellm.anthropic.messages.acreate(
            **asked,
            api_base=f"{caller.own_address}{_path(by)}/v1",
            api_key=caller.token,
            extra_headers=headers,
            num_retries=0,
            max_retries=0,
        )
    except Exception as error:  # noqa: BLE001 - of what kind its errors are is LiteLLM's affair
        raise _refusal(error) from None
    if not hasattr(answer, "__aiter__"):
        answer = answer if isinstance(answer, dict) else answer.model_dump(exclude_none=True)
        call_id = (names.HEADER_CALL_ID.encode(), by.call_id.encode())
        await replies.whole(send, 200, [replies.JSON_TYPE, call_id], orjson.dumps(answer))
        return
    await _pass_events(answer, by, send)


async def _pass_events(events: AsyncIterator[Any], by: Attribution, send: Send) -> None:
    call_id = (names.HEADER_CALL_ID.encode(), by.call_id.encode())
    await replies.begin(send, 200, [(b"content-type", b"text/event-stream"), call_id])
    try:
        async for event in events:
            await replies.go_on(send, event if isinstance(event, bytes) else str(event).encode())
    except Exception as error:  # noqa: BLE001 - as above
        _log.warning("The answer to a Messages call broke off: %s", error)
        await replies.go_on(send, _refusal(error).event(Dialect.ANTHROPIC))
        return
    await replies.end(send)


@cache
def _litellm() -> Any:
    # Without these it reads a .env file, and asks the internet for prices, at its import.
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise Refusal(
            501,
            "api_error",
            "Anthropic's Messages are translated for this policy, for which the package litellm must be installed with "
            "the server. Or set 'messages' of the policy in the gateway's settings to 'served' (vLLM) or 'anthropic'.",
        ) from None
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    # It would log each call to places that it is configured for by environment variables.
    litellm.callbacks, litellm.success_callback, litellm.failure_callback = [], [], []
    return litellm


def _path(by: Attribution) -> str:
    path = "/gateway"
    if by.rollout_id is not None and by.attempt_id is not None:
        path += f"/rollout/{quote(by.rollout_id, safe='')}/attempt/{quote(by.attempt_id, safe='')}"
    return f"{path}/role/{quote(by.role, safe='')}" if by.role is not None else path


def _refusal(error: Exception) -> Refusal:
    """What LiteLLM raises, as an answer. Its errors carry the status of the answer that they are about."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or not 400 <= status < 600:
        _log.warning("LiteLLM failed on a Messages call: %s: %s", type(error).__name__, error)
        status = 500
    return Refusal(status, "api_error", str(getattr(error, "message", None) or error))
