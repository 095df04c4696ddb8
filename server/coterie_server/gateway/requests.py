"""Reading what a client asks, and turning it to the endpoint that it goes to. The rest of the body stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from coterie.capture.api import Api
from coterie.capture.prompting import with_prompts
from coterie.capture.rewrite import with_endpoint, with_sampling
from coterie.prompts.versions import UsedPrompts
from coterie_server.gateway.attribution import Resource
from coterie_server.gateway.errors import bad_request
from coterie_server.gateway.routing import Origin, Target
from coterie_server.gateway.token_ids import Hidden


@dataclass(frozen=True, slots=True)
class Request:
    """A request on its way."""

    body: Mapping[str, Any]
    """What is sent."""
    raw: bytes
    """The same as JSON."""
    hidden: Hidden
    """What of the answer the client did not ask for."""
    prompts: UsedPrompts = field(default_factory=UsedPrompts)
    """The prompts of its role that are in it."""


def read_body(what: Api | Resource, raw: bytes) -> dict[str, Any]:
    """The JSON body of a request, so far checked that the gateway can read what it needs.

    Raises:
        Refusal: 400, it is no JSON object, or a field is of the wrong type.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is no JSON: {error}.") from None
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object, not {_KINDS.get(type(body), 'null')}.")
    for name, (type_, kind) in _FIELDS.items():
        if body.get(name) is not None and not isinstance(body[name], type_):
            raise bad_request(f"{name!r} must be {kind}, not {_KINDS.get(type(body[name]), 'null')}.")
    if what in (Api.CHAT, Api.MESSAGES):
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise bad_request("'messages' must be an array of objects.")
    if what is Api.RESPONSES and not isinstance(body.get("input"), str | list | None):
        raise bad_request("'input' must be a string or an array.")
    return body


def turned(
    api: Api, body: dict[str, Any], raw: bytes, target: Target, origin: Origin | None, *, place_prompts: bool = True
) -> Request:
    """The request as the endpoint is to get it: its model, sampling parameters, the role's prompts, and the wish for token
    ids. ``body`` is changed. With ``place_prompts=False`` it has its prompts.
    """
    hidden, prompts = Hidden(), UsedPrompts()
    changed = False
    if target.prompts is not None and place_prompts:
        prompts = with_prompts(api, body, target.prompts)
        changed = True
    if target.endpoint is not None:
        hidden = Hidden.of(api, body, target)
        with_endpoint(api, body, target.endpoint)
        hidden.ask(api, body, target)
        changed = True
    if origin is not None and origin.sampling:
        with_sampling(api, body, origin.sampling)
        changed = True
    return Request(body, orjson.dumps(body) if changed else raw, hidden, prompts)


_FIELDS: Mapping[str, tuple[Any, str]] = {
    "model": (str, "a string"),
    "stream": (bool, "true or false"),
    "tools": (list, "an array"),
    "include": (list, "an array"),
    "stream_options": (dict, "an object"),
    "stop": (str | list, "a string or an array"),
    "stop_sequences": (list, "an array"),
}
_KINDS: Mapping[type, str] = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}
