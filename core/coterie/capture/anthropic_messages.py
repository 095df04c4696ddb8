"""Anthropic's Messages API in the words of Chat Completions: requests, answers, and streams of events.

Content is a list of blocks there. Text stays text, ``thinking`` becomes ``reasoning_content``, ``tool_use`` a tool call,
``tool_result`` a message of role ``tool``; other blocks stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.vocabulary import JSON

Block = Mapping[str, Any]


def chat_messages(body: Mapping[str, Any]) -> list[Mapping[str, JSON]]:
    """The messages of a request, the system prompt first."""
    messages: list[Mapping[str, JSON]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _plain(body["system"])})
    for message in body.get("messages") or ():
        messages.extend(_as_chat(message) if isinstance(message, Mapping) else [message])
    return messages


def answer_message(body: Mapping[str, Any]) -> Mapping[str, JSON] | None:
    """The message of an answer; None if it has no content."""
    blocks = body.get("content")
    return _assistant(blocks) if isinstance(blocks, Sequence) and blocks else None


def finish_reason(body: Mapping[str, Any]) -> str | None:
    """Why generation ended."""
    reason = body.get("stop_reason")
    return _FINISH_REASONS.get(reason, str(reason)) if reason else None


def input_tokens(usage: Mapping[str, Any]) -> int | None:
    """All tokens of the prompt: those read from and written to the provider's cache are counted apart there."""
    if usage.get("input_tokens") is None:
        return None
    cached = ("cache_read_input_tokens", "cache_creation_input_tokens")
    return int(usage["input_tokens"]) + sum(usage.get(name) or 0 for name in cached)


class MessagesAssembler:
    """Events of a stream."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event."""
        kind = event.get("type")
        if kind == "message_start":
            self._message = dict(event.get("message") or {})
        elif kind == "content_block_start":
            self._blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            _add_delta(self._blocks.setdefault(event["index"], {"type": "text"}), event["delta"])
        elif kind == "message_delta":
            self._message |= event.get("delta") or {}
            usage = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
            self._message["usage"] = {**(self._message.get("usage") or {}), **usage}
        elif kind == "error":
            self._message["error"] = event.get("error")

    def body(self) -> Mapping[str, Any]:
        """The body so far."""
        return {**self._message, "content": [block for _, block in sorted(self._blocks.items())]}


_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""Type of a delta → the field that it continues."""


def _add_delta(block: dict[str, Any], delta: Block) -> None:
    name = _DELTAS.get(delta.get("type", ""))
    if name is not None:
        block[name] = (block.get(name) or "") + (delta.get(name) or "")


def _as_chat(message: Mapping[str, Any]) -> Iterator[Mapping[str, JSON]]:
    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        yield {"role": message.get("role"), "content": content}
        return
    blocks = [_plain(block) for block in content]
    if message.get("role") == "assistant":
        yield _assistant(blocks)
        return
    others = []
    for block in blocks:
        if _kind(block) == "tool_result":
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": block.get("content") or ""}
        else:
            others.append(block)
    if others:
        yield {"role": message.get("role"), "content": others}


def _assistant(blocks: Sequence[Any]) -> Mapping[str, JSON]:
    plain = [_plain(block) for block in blocks]
    texts = [block.get("text") or "" for block in plain if _kind(block) == "text"]
    thoughts = [block.get("thinking") or "" for block in plain if _kind(block) == "thinking"]
    calls = [_tool_call(block) for block in plain if _kind(block) == "tool_use"]
    message: dict[str, JSON] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: Block) -> Mapping[str, JSON]:
    arguments = block.get("partial_json") or json.dumps(block.get("input") or {}, ensure_ascii=False, default=str)
    return {"id": block.get("id"), "type": "function", "function": {"name": block.get("name"), "arguments": arguments}}


def _kind(block: Any) -> str | None:
    return block.get("type") if isinstance(block, Mapping) else None


def _plain(value: Any) -> Any:
    """The SDK's own objects, which its users put back into requests, as mappings."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True) if callable(dump) else value
