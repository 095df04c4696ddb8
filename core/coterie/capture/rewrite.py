"""Changing a request on its way out: the role's endpoint, sampling parameters, the wish for token ids. Its prompts are put
in by ``prompting.py``.

Works on a copy of the request's body, one level deep, so the user's own objects stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from coterie.capture.api import Api
from coterie.capture.faults import warn_once
from coterie.vocabulary import JSON, Endpoint

NO_KEY = "coterie-no-key"
"""Sent to endpoints that have no key of their own: the user's key stays with the host that it is for."""


def with_endpoint(api: Api, body: dict[str, Any], endpoint: Endpoint) -> None:
    """Turn a body to an endpoint: its model, its sampling parameters, the wish for token ids."""
    body["model"] = endpoint.model
    with_sampling(api, body, endpoint.sampling)
    if not endpoint.token_ids or api is Api.MESSAGES:  # which has no place for them
        return
    body["return_token_ids"] = True
    if api is Api.CHAT:
        body["logprobs"] = True
    elif api is Api.COMPLETIONS:
        body["logprobs"] = body.get("logprobs") or 0
    else:
        wanted = "message.output_text.logprobs"
        body["include"] = [*(name for name in body.get("include") or () if name != wanted), wanted]


def with_sampling(api: Api, body: dict[str, Any], sampling: Mapping[str, JSON]) -> None:
    """Replace sampling parameters. A limit on the answer's length takes the one name that the API knows; None takes
    the caller's value away.
    """
    for name, value in sampling.items():
        if name in LENGTH_LIMITS:
            limit_name = _limit_name(api, body, name)
            for other in LENGTH_LIMITS:
                body.pop(other, None)
            name = limit_name
        elif api is Api.MESSAGES and name == "stop":
            name, value = "stop_sequences", [value] if isinstance(value, str) else value
        elif name == "seed" and api in (Api.RESPONSES, Api.MESSAGES):
            continue  # They have no such parameter, and refuse it.
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value


LENGTH_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of the limit on the answer's length."""


def endpoint_key(endpoint: Endpoint) -> str:
    """The key to send to an endpoint. One whose variable is not set gets ``NO_KEY``, so that the endpoint itself refuses."""
    if endpoint.api_key_env is None:
        return NO_KEY
    key = os.environ.get(endpoint.api_key_env)
    if not key:
        warn_once(
            f"The endpoint {endpoint.base_url} of policy {endpoint.policy!r} takes its key from the environment variable "
            f"{endpoint.api_key_env}, which is not set. Set it where the agents run"
        )
    return key or NO_KEY


def _limit_name(api: Api, body: Mapping[str, Any], asked: str) -> str:
    if api is Api.RESPONSES:
        return "max_output_tokens"
    if api is Api.CHAT and "max_completion_tokens" in (asked, *body):
        return "max_completion_tokens"
    return "max_tokens"
