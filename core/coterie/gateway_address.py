"""The address through which agents in other processes and languages call their models, so that their calls belong to an
attempt of this one.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from coterie.connecting import TOKEN_VARIABLE
from coterie.scope import current_scope
from coterie.vocabulary import Endpoint


def gateway_url(server: str, role: str | None = None) -> str:
    """The OpenAI base URL of a server's gateway for the current attempt: for ``OPENAI_BASE_URL`` of a program that the
    rollout function starts, in whatever language. Outside any attempt, that for calls of no rollout.

    Args:
        server: the address of ``coterie serve``, such as ``http://127.0.0.1:4747``.
        role: the role whose calls go there; None where the program sends it as a header, or has but one.
    """
    scope = current_scope()
    path = f"{server.rstrip('/')}/gateway"
    if scope is not None:
        path += f"/rollout/{quote(scope.rollout_id, safe='')}/attempt/{quote(scope.attempt_id, safe='')}"
    if role is not None:
        path += f"/role/{quote(role, safe='')}"
    return f"{path}/v1"


def through_gateway(endpoint: Endpoint, server: str) -> Endpoint:
    """The endpoint as agents reach it through a server's gateway, which knows where its model is: with the token of this
    process as the key.
    """
    return replace(endpoint, base_url=f"{server.rstrip('/')}/gateway/v1", api_key_env=TOKEN_VARIABLE, replicas=())
