"""Answers that no server sends: the body that an API would have answered with, whole or as server-sent events.

The SDK reads them as it reads any other, so that a program cannot tell a given answer from a real one, however it reads it:
parsed, raw, streamed. Token ids stand where vLLM puts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.capture.api import Api
from coterie.replays import GivenAnswer
from coterie.vocabulary import JSON

Body = dict[str, JSON]


def whole_body(api: Api, answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> bytes:
    """The answer as one JSON body.

    Args:
        api: which API was called.
        answer: what it says.
        request: the body that was sent.
        call_id: makes the ids in the answer.
    """
    return json.dumps(_WHOLE[api](answer, request, call_id)).encode()


def events(api: Api, answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> bytes:
    """The answer as server-sent events, the text in one piece."""
    return b"".join(_STREAMED[api](answer, request, call_id))


def _chat(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Body:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": None, **message},
            "finish_reason": answer.finish_reason,
            "logprobs": _chat_logprobs(answer) if index == 0 else None,
            **_ids("token_ids", answer.response_ids if index == 0 else None),
        }
        for index, message in enumerate(answer.messages)
    ]
    return {**_frame(answer, request, call_id, "chat.completion"), "choices": choices, "usage": _usage(answer)}


def _chat_events(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Iterator[bytes]:
    whole = _chat(answer, request, call_id)
    frame = {**whole, "object": "chat.completion.chunk"}
    del frame["usage"]
    for choice in whole["choices"]:
        delta = dict(choice["message"])
        if delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(delta["tool_calls"])]
        said = {name: value for name, value in choice.items() if name != "message"}
        yield _event({**frame, "choices": [{**said, "delta": delta, "finish_reason": None}]})
        end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None}
        yield _event({**frame, "choices": [end]})
    yield from _last(frame, whole, request)


def _completions(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Body:
    choices = [
        {
            "index": index,
            "text": _text(message),
            "finish_reason": answer.finish_reason,
            "logprobs": {"tokens": [], "token_logprobs": list(answer.logprobs)}
            if answer.logprobs and not index
            else None,
            **_ids("token_ids", answer.response_ids if index == 0 else None),
        }
        for index, message in enumerate(answer.messages)
    ]
    return {**_frame(answer, request, call_id, "text_completion"), "choices": choices, "usage": _usage(answer)}


def _completions_events(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Iterator[bytes]:
    whole = _completions(answer, request, call_id)
    frame = {name: value for name, value in whole.items() if name != "usage"}
    for choice in whole["choices"]:
        yield _event({**frame, "choices": [choice]})
    yield from _last(frame, whole, request)


def _responses(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Body:
    return {
        "id": f"resp_{call_id}",
        "object": "response",
        "created_at": 0,
        "model": _model(answer, request),
        "status": "incomplete" if answer.finish_reason == "length" else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if answer.finish_reason == "length" else None,
        "output": _items(answer, call_id),
        "parallel_tool_calls": True,
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": request.get("tools") or [],
        "error": None,
        "instructions": request.get("instructions"),
        "metadata": {},
        "temperature": request.get("temperature"),
        "top_p": request.get("top_p"),
        "usage": {
            **_usage(answer, "input_tokens", "output_tokens"),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
        **_ids("prompt_token_ids", answer.prompt_ids),
        **_ids("token_ids", answer.response_ids),
    }


def _items(answer: GivenAnswer, call_id: str) -> list[Body]:
    message = answer.messages[0] if answer.messages else {}
    thought, said, calls = message.get("reasoning_content"), _text(message), message.get("tool_calls") or ()
    items: list[Body] = []
    if thought:
        content = [{"type": "reasoning_text", "text": thought}]
        items.append({"type": "reasoning", "id": f"rs_{call_id}", "summary": [], "content": content})
    if said or not calls:
        part: Body = {"type": "output_text", "text": said, "annotations": []}
        if answer.logprobs:
            part["logprobs"] = (_chat_logprobs(answer) or {})["content"]
        item = {"type": "message", "id": f"msg_{call_id}", "role": "assistant", "status": "completed"}
        items.append({**item, "content": [part]})
    for at, call in enumerate(calls):
        function = call.get("function") or {}
        item = {"type": "function_call", "id": f"fc_{call_id}_{at}", "call_id": call.get("id"), "status": "completed"}
        items.append({**item, "name": function.get("name"), "arguments": function.get("arguments") or ""})
    return items


def _responses_events(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Iterator[bytes]:
    whole = _responses(answer, request, call_id)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    told: list[Body] = [{"type": "response.created", "response": begun}]
    for at, item in enumerate(whole["output"]):
        told += _item_events(at, item)
    ended = "response.incomplete" if whole["status"] == "incomplete" else "response.completed"
    told.append({"type": ended, "response": whole})
    for number, event in enumerate(told):
        yield _event({**event, "sequence_number": number}, name=event["type"])


def _item_events(at: int, item: Body) -> Iterator[Body]:
    place = {"item_id": item["id"], "output_index": at}
    nothing: Body = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
    yield {
        "type": "response.output_item.added",
        "output_index": at,
        "item": {**item, **nothing, "status": "in_progress"},
    }
    if item["type"] == "message":
        (part,) = item["content"]
        inside = {**place, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        yield {"type": "response.content_part.added", **inside, "part": empty}
        yield {"type": "response.output_text.delta", **inside, "delta": part["text"], "logprobs": []}
        yield {"type": "response.output_text.done", **inside, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **inside, "part": part}
    elif item["type"] == "function_call":
        said = item["arguments"]
        yield {"type": "response.function_call_arguments.delta", **place, "delta": said}
        yield {"type": "response.function_call_arguments.done", **place, "arguments": said, "name": item["name"]}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}


def _messages(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Body:
    return {
        "id": f"msg_{call_id}",
        "type": "message",
        "role": "assistant",
        "model": _model(answer, request),
        "content": list(_blocks(answer)),
        "stop_reason": _STOP_REASONS.get(answer.finish_reason, answer.finish_reason),
        "stop_sequence": None,
        "usage": _usage(answer, "input_tokens", "output_tokens", total=False),
    }


def _blocks(answer: GivenAnswer) -> Iterator[Body]:
    message = answer.messages[0] if answer.messages else {}
    if message.get("reasoning_content"):
        yield {"type": "thinking", "thinking": message["reasoning_content"], "signature": ""}
    said, calls = _text(message), message.get("tool_calls") or ()
    if said or not calls:
        yield {"type": "text", "text": said}
    for call in calls:
        function = call.get("function") or {}
        given = json.loads(function.get("arguments") or "{}")
        yield {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given}


def _messages_events(answer: GivenAnswer, request: Mapping[str, Any], call_id: str) -> Iterator[bytes]:
    whole = _messages(answer, request, call_id)
    yield _named({"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}})
    for at, block in enumerate(whole["content"]):
        empty = {**block, **_EMPTY_BLOCKS[block["type"]]}
        yield _named({"type": "content_block_start", "index": at, "content_block": empty})
        kind, name, field = _BLOCK_DELTAS[block["type"]]
        said = json.dumps(block[field]) if field == "input" else block[field]
        yield _named({"type": "content_block_delta", "index": at, "delta": {"type": kind, name: said}})
        yield _named({"type": "content_block_stop", "index": at})
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _named({"type": "message_delta", "delta": end, "usage": {"output_tokens": whole["usage"]["output_tokens"]}})
    yield _named({"type": "message_stop"})


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_EMPTY_BLOCKS: Mapping[str, Body] = {"text": {"text": ""}, "thinking": {"thinking": ""}, "tool_use": {"input": {}}}
_BLOCK_DELTAS = {
    "text": ("text_delta", "text", "text"),
    "thinking": ("thinking_delta", "thinking", "thinking"),
    "tool_use": ("input_json_delta", "partial_json", "input"),
}
"""Type of a block → type of its delta, the delta's field, the block's field."""

_WHOLE = {Api.CHAT: _chat, Api.COMPLETIONS: _completions, Api.RESPONSES: _responses, Api.MESSAGES: _messages}
_STREAMED = {
    Api.CHAT: _chat_events,
    Api.COMPLETIONS: _completions_events,
    Api.RESPONSES: _responses_events,
    Api.MESSAGES: _messages_events,
}


def _frame(answer: GivenAnswer, request: Mapping[str, Any], call_id: str, kind: str) -> Body:
    frame = {"id": f"given-{call_id}", "object": kind, "created": 0, "model": _model(answer, request)}
    return {**frame, **_ids("prompt_token_ids", answer.prompt_ids)}


def _last(frame: Body, whole: Body, request: Mapping[str, Any]) -> Iterator[bytes]:
    if (request.get("stream_options") or {}).get("include_usage"):
        yield _event({**frame, "choices": [], "usage": whole["usage"]})
    yield b"data: [DONE]\n\n"


def _model(answer: GivenAnswer, request: Mapping[str, Any]) -> str:
    return str(answer.model or request.get("model") or "")


def _ids(name: str, ids: Sequence[int] | None) -> Body:
    return {} if ids is None else {name: list(ids)}


def _chat_logprobs(answer: GivenAnswer) -> Body | None:
    if answer.logprobs is None:
        return None
    # What the tokens were called is not recorded; whoever trains goes by the ids.
    entry: Body = {"token": "", "bytes": None, "top_logprobs": []}
    return {"content": [{**entry, "logprob": logprob} for logprob in answer.logprobs]}


def _usage(
    answer: GivenAnswer, prompt: str = "prompt_tokens", said: str = "completion_tokens", *, total: bool = True
) -> dict[str, int]:
    used = {prompt: len(answer.prompt_ids or ()), said: len(answer.response_ids or ())}
    return {**used, "total_tokens": sum(used.values())} if total else used


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content or ""


def _event(data: JSON, name: str | None = None) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def _named(data: Body) -> bytes:
    return _event(data, name=data["type"])
