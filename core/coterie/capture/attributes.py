"""What a span says of a request and of its answer: the same whether the call was seen in its program or on its way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coterie import conventions as names
from coterie.capture.answers import Answer
from coterie.capture.anthropic_messages import chat_messages
from coterie.capture.api import Api
from coterie.capture.content import ContentRules
from coterie.capture.rewrite import LENGTH_LIMITS
from coterie.vocabulary import JSON


def request_attributes(api: Api, body: Mapping[str, Any], rules: ContentRules) -> dict[str, Any]:
    """What was asked: model, sampling parameters, and, if the rules allow it, messages and tools."""
    # A body says few of these, so it is gone through, and not they.
    attributes: dict[str, Any] = {
        _PARAMETERS[name]: value for name, value in body.items() if name in _PARAMETERS and value is not None
    }
    for name in LENGTH_LIMITS:
        if body.get(name) is not None:
            attributes[names.REQUEST_MAX_TOKENS] = body[name]
            break
    stop = body.get("stop") or body.get("stop_sequences")
    if stop:
        attributes[names.REQUEST_STOP_SEQUENCES] = [stop] if isinstance(stop, str) else list(map(str, stop))
    if attributes.get(names.REQUEST_CHOICE_COUNT) == 1:
        del attributes[names.REQUEST_CHOICE_COUNT]
    attributes[names.REQUEST_STREAM] = bool(body.get("stream"))
    if rules.capture_content:
        attributes[names.INPUT_MESSAGES] = rules.json_text(input_messages(api, body))
        if body.get("tools"):
            attributes[names.TOOL_DEFINITIONS] = rules.json_text(body["tools"])
    return attributes


def answer_attributes(answer: Answer, rules: ContentRules) -> dict[str, Any]:
    """What came back, without its token ids: those need a place where lists of thousands cost nothing."""
    prompt_ids, response_ids = answer.prompt_ids, answer.response_ids
    attributes: dict[str, Any] = {
        names.RESPONSE_ID: answer.id,
        names.RESPONSE_MODEL: answer.model,
        names.FINISH_REASONS: list(answer.finish_reasons) or None,
        names.INPUT_TOKENS: len(prompt_ids) if answer.input_tokens is None and prompt_ids else answer.input_tokens,
        names.OUTPUT_TOKENS: (
            len(response_ids) if answer.output_tokens is None and response_ids else answer.output_tokens
        ),
    }
    if rules.capture_content and answer.messages:
        attributes[names.OUTPUT_MESSAGES] = rules.json_text(answer.messages)
    return {name: value for name, value in attributes.items() if value is not None}


_PARAMETERS = {
    "model": names.REQUEST_MODEL,
    "temperature": names.REQUEST_TEMPERATURE,
    "top_p": names.REQUEST_TOP_P,
    "top_k": names.REQUEST_TOP_K,
    "seed": names.REQUEST_SEED,
    "frequency_penalty": names.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": names.REQUEST_PRESENCE_PENALTY,
    "n": names.REQUEST_CHOICE_COUNT,
}
"""A request's field to the attribute that tells it."""


def input_messages(api: Api, body: Mapping[str, Any]) -> JSON:
    """What was sent, as a list of messages."""
    if api is Api.CHAT:
        return body.get("messages") or []
    if api is Api.MESSAGES:
        return chat_messages(body)
    given = body.get("input" if api is Api.RESPONSES else "prompt")
    messages = list(given) if api is Api.RESPONSES and isinstance(given, list | tuple) else []
    if not messages:
        messages = [{"role": "user", "content": given if isinstance(given, str) else json.dumps(given)}]
    if api is Api.RESPONSES and body.get("instructions") is not None:
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    return messages
