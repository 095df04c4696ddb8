"""The bodies of OpenAI-compatible answers, whole and streamed: Chat Completions, Responses, legacy
Completions; and of Anthropic's Messages.

Token ids are given as vLLM gives them: ``prompt_token_ids`` at the top, ``token_ids`` a choice or chunk.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coterie.vocabulary import JSON

END_OF_MESSAGE = "\x03"
"""The toy tokeniser's last token of each message."""


def toy_tokens(text: str) -> list[int]:
    """The toy tokeniser: a character is a token."""
    return [ord(character) for character in text]


def toy_text(tokens: Sequence[int]) -> str:
    """The text of toy tokens."""
    return "".join(map(chr, tokens))


def toy_logprob(token: int) -> float:
    """The log-probability that the scripted model claims for a token: always the same, between -1 and 0."""
    return -((token * 37) % 100 + 1) / 101


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """An answer to one request, before it takes the shape of an API."""

    request: Mapping[str, Any]
    id: str
    created: int
    """Seconds since the epoch."""
    text: str
    tool_calls: Sequence[Mapping[str, str]]
    """Each with ``id``, ``name`` and ``arguments`` (JSON text)."""
    finish_reason: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    @classmethod
    def of(
        cls,
        request: Mapping[str, Any],
        *,
        number: int,
        text: str,
        tool_calls: Sequence[Mapping[str, JSON]],
        finish_reason: str | None,
    ) -> WrittenAnswer:
        """The answer number ``number`` of a server to ``request``."""
        calls = [_plain_call(call, f"call_{number}_{index}") for index, call in enumerate(tool_calls)]
        return cls(
            request=request,
            id=f"{number}",
            created=int(time.time()),
            text=text,
            tool_calls=calls,
            finish_reason=finish_reason or ("tool_calls" if calls else "stop"),
            prompt_ids=toy_tokens("".join(map(_rendered, _messages(request))) + "<assistant>"),
            response_ids=toy_tokens(_spoken(text, calls)),
        )

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.request.get("model"))

    @property
    def pieces(self) -> list[str]:
        """The text in pieces of a word each, as a stream gives it."""
        return re.findall(r"\s*\S+|\s+$", self.text)

    @property
    def wants_ids(self) -> bool:
        """True when token ids were asked for."""
        return bool(self.request.get("return_token_ids"))


class Shape(Protocol):
    """How one API writes an answer."""

    def body(self, answer: WrittenAnswer) -> JSON:
        """The whole answer."""
        ...

    def chunks(self, answer: WrittenAnswer) -> list[bytes]:
        """The streamed answer as server-sent events."""
        ...


class ChatShape:
    """``/chat/completions``."""

    def body(self, answer: WrittenAnswer) -> JSON:
        """The whole answer."""
        message: dict[str, JSON] = {"role": "assistant", "content": answer.text or None}
        if answer.tool_calls:
            message["tool_calls"] = [_openai_call(call) for call in answer.tool_calls]
        choice: dict[str, JSON] = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        choice["logprobs"] = _chat_logprobs(answer.response_ids) if answer.request.get("logprobs") else None
        body = {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [choice],
            "usage": _usage(answer, "prompt_tokens", "completion_tokens"),
        }
        if answer.wants_ids:
            body["prompt_token_ids"] = list(answer.prompt_ids)
            choice["token_ids"] = list(answer.response_ids)
        return body

    def chunks(self, answer: WrittenAnswer) -> list[bytes]:
        """The streamed answer as server-sent events."""
        deltas: list[tuple[dict[str, JSON], str]] = [({"content": piece}, piece) for piece in answer.pieces]
        for index, call in enumerate(answer.tool_calls):
            half = len(call["arguments"]) // 2
            start = {"name": call["name"], "arguments": ""}
            deltas.append(
                ({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": start}]}, "")
            )
            deltas.extend(
                ({"tool_calls": [{"index": index, "function": {"arguments": part}}]}, "")
                for part in (call["arguments"][:half], call["arguments"][half:])
            )
        frames = [self._frame(answer, {"role": "assistant", "content": ""}, [], first=True)]
        sent = 0
        for delta, spoken in deltas:
            frames.append(self._frame(answer, delta, answer.response_ids[sent : sent + len(spoken)]))
            sent += len(spoken)
        frames.append(self._frame(answer, {}, answer.response_ids[sent:], finish_reason=answer.finish_reason))
        if (answer.request.get("stream_options") or {}).get("include_usage"):
            usage = self._frame(answer, {}, [])
            usage |= {"choices": [], "usage": _usage(answer, "prompt_tokens", "completion_tokens")}
            frames.append(usage)
        return [*(_event(frame) for frame in frames), b"data: [DONE]\n\n"]

    def _frame(
        self,
        answer: WrittenAnswer,
        delta: Mapping[str, JSON],
        ids: Sequence[int],
        *,
        first: bool = False,
        finish_reason: str | None = None,
    ) -> dict[str, JSON]:
        choice: dict[str, JSON] = {"index": 0, "delta": dict(delta), "finish_reason": finish_reason}
        choice["logprobs"] = _chat_logprobs(ids) if ids and answer.request.get("logprobs") else None
        frame = {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
            "choices": [choice],
        }
        if answer.wants_ids and first:
            frame["prompt_token_ids"] = list(answer.prompt_ids)
        if answer.wants_ids and ids:
            choice["token_ids"] = list(ids)
        return frame


class ResponsesShape:
    """``/responses``."""

    def body(self, answer: WrittenAnswer) -> JSON:
        """The whole answer."""
        output = [item for item, _ in self._items(answer)]
        body = self._envelope(answer, "completed", output)
        body["usage"] = {
            **_usage(answer, "input_tokens", "output_tokens"),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        if answer.wants_ids:
            body["prompt_token_ids"] = list(answer.prompt_ids)
            body["token_ids"] = list(answer.response_ids)
        return body

    def chunks(self, answer: WrittenAnswer) -> list[bytes]:
        """The streamed answer as server-sent events."""
        events: list[dict[str, JSON]] = [
            {"type": "response.created", "response": self._envelope(answer, "in_progress", [])}
        ]
        for index, (item, empty) in enumerate(self._items(answer)):
            place = {"item_id": item["id"], "output_index": index}
            events.append({"type": "response.output_item.added", "output_index": index, "item": empty})
            if item["type"] == "message":
                place["content_index"] = 0
                part = {"type": "output_text", "text": "", "annotations": []}
                events.append({"type": "response.content_part.added", **place, "part": part})
                events.extend(
                    {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
                    for piece in answer.pieces
                )
                events.append(
                    {"type": "response.output_text.done", **place, "text": answer.text, "logprobs": []},
                )
                events.append({"type": "response.content_part.done", **place, "part": item["content"][0]})
            else:
                arguments = item["arguments"]
                events.append({"type": "response.function_call_arguments.delta", **place, "delta": arguments})
                events.append(
                    {
                        "type": "response.function_call_arguments.done",
                        **place,
                        "arguments": arguments,
                        "name": item["name"],
                    }
                )
            events.append({"type": "response.output_item.done", "output_index": index, "item": item})
        events.append({"type": "response.completed", "response": self.body(answer)})
        return [
            _event(event | {"sequence_number": number}, name=str(event["type"])) for number, event in enumerate(events)
        ]

    def _items(self, answer: WrittenAnswer) -> list[tuple[dict[str, JSON], dict[str, JSON]]]:
        """Each output item, finished and as it is announced."""
        items: list[tuple[dict[str, JSON], dict[str, JSON]]] = []
        if answer.text or not answer.tool_calls:
            content: dict[str, JSON] = {"type": "output_text", "text": answer.text, "annotations": []}
            if "message.output_text.logprobs" in (answer.request.get("include") or ()):
                # As vLLM does: of all sampled tokens, those of tool calls too.
                content["logprobs"] = _chat_logprobs(answer.response_ids)["content"]
            message = {"type": "message", "id": f"msg_{answer.id}", "role": "assistant"}
            items.append(
                (
                    {**message, "status": "completed", "content": [content]},
                    {**message, "status": "in_progress", "content": []},
                )
            )
        for call in answer.tool_calls:
            item = {"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"], "name": call["name"]}
            items.append(
                (
                    {**item, "status": "completed", "arguments": call["arguments"]},
                    {**item, "status": "in_progress", "arguments": ""},
                )
            )
        return items

    def _envelope(self, answer: WrittenAnswer, status: str, output: list[dict[str, JSON]]) -> dict[str, JSON]:
        return {
            "id": f"resp_{answer.id}",
            "object": "response",
            "created_at": answer.created,
            "model": answer.model,
            "status": status,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": answer.request.get("tool_choice", "auto"),
            "tools": answer.request.get("tools") or [],
            "error": None,
            "incomplete_details": None,
            "instructions": answer.request.get("instructions"),
            "metadata": {},
            "temperature": answer.request.get("temperature"),
            "top_p": answer.request.get("top_p"),
        }


class CompletionsShape:
    """``/completions``, the legacy one."""

    def body(self, answer: WrittenAnswer) -> JSON:
        """The whole answer."""
        body = self._frame(answer, answer.text, answer.response_ids, finish_reason=answer.finish_reason, first=True)
        return body | {"usage": _usage(answer, "prompt_tokens", "completion_tokens")}

    def chunks(self, answer: WrittenAnswer) -> list[bytes]:
        """The streamed answer as server-sent events."""
        frames: list[dict[str, JSON]] = []
        sent = 0
        for piece in answer.pieces:
            frames.append(self._frame(answer, piece, answer.response_ids[sent : sent + len(piece)], first=not frames))
            sent += len(piece)
        frames.append(self._frame(answer, "", answer.response_ids[sent:], finish_reason=answer.finish_reason))
        return [*(_event(frame) for frame in frames), b"data: [DONE]\n\n"]

    def _frame(
        self,
        answer: WrittenAnswer,
        text: str,
        ids: Sequence[int],
        *,
        first: bool = False,
        finish_reason: str | None = None,
    ) -> dict[str, JSON]:
        choice: dict[str, JSON] = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
        if answer.request.get("logprobs") is not None:
            tokens = [chr(token) for token in ids]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": [toy_logprob(token) for token in ids]}
        if answer.wants_ids:
            choice["token_ids"] = list(ids)
            if first:
                choice["prompt_token_ids"] = list(answer.prompt_ids)
        return {
            "id": f"cmpl-{answer.id}",
            "object": "text_completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [choice],
        }


class MessagesShape:
    """Anthropic's ``/messages``, without token ids, for which it has no place."""

    def body(self, answer: WrittenAnswer) -> JSON:
        """The whole answer."""
        return {
            **self._start(answer),
            "content": [self._finished(block) for block in self._blocks(answer)],
            "stop_reason": _ANTHROPIC_REASONS.get(answer.finish_reason, answer.finish_reason),
            "usage": {"input_tokens": len(answer.prompt_ids), "output_tokens": len(answer.response_ids)},
        }

    def chunks(self, answer: WrittenAnswer) -> list[bytes]:
        """The streamed answer as server-sent events."""
        whole = self.body(answer)
        started = {**self._start(answer), "usage": {"input_tokens": len(answer.prompt_ids), "output_tokens": 1}}
        events: list[dict[str, JSON]] = [{"type": "message_start", "message": started}, {"type": "ping"}]
        for index, block in enumerate(self._blocks(answer)):
            nothing: dict[str, JSON] = {"text": ""} if block["type"] == "text" else {"input": {}}
            empty = block | nothing
            events.append({"type": "content_block_start", "index": index, "content_block": empty})
            deltas: list[dict[str, JSON]]
            if block["type"] == "text":
                deltas = [{"type": "text_delta", "text": piece} for piece in answer.pieces]
            else:
                half = len(block["input"]) // 2
                parts = (block["input"][:half], block["input"][half:])
                deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
            events.extend({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
            events.append({"type": "content_block_stop", "index": index})
        end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": len(answer.response_ids)}})
        events.append({"type": "message_stop"})
        return [_event(event, name=str(event["type"])) for event in events]

    def _blocks(self, answer: WrittenAnswer) -> list[dict[str, JSON]]:
        """The content blocks, the input of tools as JSON text."""
        text = [{"type": "text", "text": answer.text}] if answer.text or not answer.tool_calls else []
        calls = [
            {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["arguments"]}
            for call in answer.tool_calls
        ]
        return [*text, *calls]

    def _finished(self, block: Mapping[str, JSON]) -> dict[str, JSON]:
        return {**block, "input": json.loads(block["input"])} if block["type"] == "tool_use" else dict(block)

    def _start(self, answer: WrittenAnswer) -> dict[str, JSON]:
        return {
            "id": f"msg_{answer.id}",
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }


_ANTHROPIC_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}

SHAPES: Mapping[str, Shape] = {
    "/messages": MessagesShape(),
    "/chat/completions": ChatShape(),
    "/responses": ResponsesShape(),
    "/completions": CompletionsShape(),
}
"""How a path ends → how its answers look; the longer endings come first."""


def error_body(status: int, message: str) -> JSON:
    """An error as OpenAI writes it."""
    return {"error": {"message": message, "type": "scripted_error", "param": None, "code": status}}


def _messages(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The request's messages, whatever API it is for."""
    if "messages" in request:
        system = [{"role": "system", "content": request["system"]}] if request.get("system") else []
        return [*system, *request["messages"]]
    given = request.get("input", request.get("prompt", ""))
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    if request.get("instructions"):
        messages.insert(0, {"role": "system", "content": request["instructions"]})
    return messages


def _rendered(message: Mapping[str, Any]) -> str:
    content = message.get("content", message.get("output")) or ""
    text = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    calls = [_plain_call(call, "") for call in message.get("tool_calls") or ()]
    if message.get("type") == "function_call":
        calls = [_plain_call(message, "")]
    return f"<{message.get('role', message.get('type'))}>" + _spoken(text, calls)


def _spoken(text: str, calls: Sequence[Mapping[str, str]]) -> str:
    """What a model that answers so has sampled."""
    return text + "".join(f"<call>{call['name']}{call['arguments']}" for call in calls) + END_OF_MESSAGE


def _plain_call(call: Mapping[str, Any], default_id: str) -> dict[str, str]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    return {
        "id": str(call.get("id") or default_id),
        "name": str(function.get("name")),
        "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
    }


def _openai_call(call: Mapping[str, str]) -> dict[str, JSON]:
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": call["name"], "arguments": call["arguments"]},
    }


def _chat_logprobs(ids: Sequence[int]) -> dict[str, JSON]:
    entries = [
        {"token": chr(token), "logprob": toy_logprob(token), "bytes": list(chr(token).encode()), "top_logprobs": []}
        for token in ids
    ]
    return {"content": entries}


def _usage(answer: WrittenAnswer, prompt: str, completion: str) -> dict[str, int]:
    used = {prompt: len(answer.prompt_ids), completion: len(answer.response_ids)}
    return used | {"total_tokens": len(answer.prompt_ids) + len(answer.response_ids)}


def _event(data: JSON, name: str | None = None) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"
