"""Reading what a model answered: one reader an API for whole bodies, one assembler an API for streams.

An assembler puts the pieces of a stream together to the body that the server would have sent unstreamed, so that
everything behind it is the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coterie.capture.anthropic_messages import MessagesAssembler, answer_message, finish_reason, input_tokens
from coterie.capture.api import Api
from coterie.vocabulary import JSON


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whichever API it came through."""

    id: str | None = None
    model: str | None = None
    text: str = ""
    """The text of the first choice."""
    messages: Sequence[Mapping[str, JSON]] = ()
    """One assistant message a choice, in the form of Chat Completions, tool calls included."""
    finish_reasons: Sequence[str] = ()
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_ids: Sequence[int] | None = None
    response_ids: Sequence[int] | None = None
    """Of the first choice."""
    logprobs: Sequence[float] | None = None
    """One a sampled token of the first choice."""
    error: str | None = None
    """An error that the server wrote into an answer of status 200: its message."""


def read_answer(api: Api, body: Mapping[str, Any]) -> Answer:
    """Read a whole body."""
    if api is Api.CHAT:
        return _read_chat(body)
    if api is Api.RESPONSES:
        return _read_responses(body)
    if api is Api.MESSAGES:
        return _read_messages(body)
    return _read_completions(body)


class Assembler(Protocol):
    """Puts the events of a stream together."""

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event's data."""
        ...

    def body(self) -> Mapping[str, Any]:
        """The body so far."""
        ...


def assembler_for(api: Api) -> Assembler:
    """An empty assembler."""
    if api is Api.RESPONSES:
        return ResponsesAssembler()
    return MessagesAssembler() if api is Api.MESSAGES else ChoicesAssembler()


class ChoicesAssembler:
    """Chunks of Chat Completions and of legacy Completions."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next chunk."""
        for name in ("id", "model", "usage", "prompt_token_ids", "error"):
            if event.get(name) is not None:
                self._top[name] = event[name]
        for part in event.get("choices") or ():
            choice = self._choices.setdefault(part.get("index") or 0, {"message": {"role": "assistant"}})
            _add_delta(choice["message"], part.get("delta") or {})
            _add_logprobs(choice, part.get("logprobs"))
            if part.get("text"):
                choice["text"] = choice.get("text", "") + part["text"]
            if part.get("token_ids"):
                choice.setdefault("token_ids", []).extend(part["token_ids"])
            for name in ("finish_reason", "prompt_token_ids"):
                if part.get(name) is not None:
                    choice[name] = part[name]

    def body(self) -> Mapping[str, Any]:
        """The body so far."""
        return {**self._top, "choices": [choice for _, choice in sorted(self._choices.items())]}


class ResponsesAssembler:
    """Events of the Responses API. The last event holds the whole; before it, finished items and text so far."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._whole = False
        self._items: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, list[str]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event."""
        kind = event.get("type", "")
        if isinstance(event.get("response"), Mapping):
            self._response = dict(event["response"])
            self._whole = kind in ("response.completed", "response.incomplete", "response.failed")
        elif kind == "response.output_item.done":
            self._items[event["output_index"]] = event["item"]
        elif kind == "response.output_text.delta":
            self._texts.setdefault(event["output_index"], []).append(event["delta"])
        elif kind == "error" or "error" in event:
            self._response["error"] = event.get("error") or {"message": event.get("message")}

    def body(self) -> Mapping[str, Any]:
        """The body so far."""
        if self._whole:
            return self._response
        partial = {
            index: {"type": "message", "content": [{"type": "output_text", "text": "".join(texts)}]}
            for index, texts in self._texts.items()
        }
        items = [item for _, item in sorted((partial | self._items).items())]
        return {**self._response, "output": items, "status": "cut"}


def _read_chat(body: Mapping[str, Any]) -> Answer:
    choices = body.get("choices") or ()
    first = choices[0] if choices else {}
    logprobs = (first.get("logprobs") or {}).get("content")
    messages = [_without_none(choice.get("message") or {}) for choice in choices]
    usage = body.get("usage") or {}
    return Answer(
        id=body.get("id"),
        model=body.get("model"),
        text=_text_of(messages[0].get("content")) if messages else "",
        messages=messages,
        finish_reasons=[str(choice["finish_reason"]) for choice in choices if choice.get("finish_reason")],
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        prompt_ids=body.get("prompt_token_ids"),
        response_ids=first.get("token_ids"),
        logprobs=[entry["logprob"] for entry in logprobs] if logprobs is not None else None,
        error=_error_message(body),
    )


def _read_completions(body: Mapping[str, Any]) -> Answer:
    choices = body.get("choices") or ()
    first = choices[0] if choices else {}
    logprobs = (first.get("logprobs") or {}).get("token_logprobs")
    usage = body.get("usage") or {}
    return Answer(
        id=body.get("id"),
        model=body.get("model"),
        text=first.get("text") or "",
        messages=[{"role": "assistant", "content": choice.get("text") or ""} for choice in choices],
        finish_reasons=[str(choice["finish_reason"]) for choice in choices if choice.get("finish_reason")],
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        prompt_ids=first.get("prompt_token_ids") or body.get("prompt_token_ids"),
        response_ids=first.get("token_ids"),
        logprobs=logprobs,
        error=_error_message(body),
    )


def _read_responses(body: Mapping[str, Any]) -> Answer:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Mapping[str, JSON]] = []
    logprobs: list[float] = []
    for item in body.get("output") or ():
        kind = item.get("type")
        if kind == "message":
            for part in item.get("content") or ():
                texts.append(part.get("text") or part.get("refusal") or "")
                logprobs.extend(entry["logprob"] for entry in part.get("logprobs") or ())
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind == "reasoning":
            reasoning.extend(part.get("text") or "" for part in item.get("content") or item.get("summary") or ())
    message: dict[str, JSON] = {"role": "assistant", "content": "".join(texts)}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    usage = body.get("usage") or {}
    return Answer(
        id=body.get("id"),
        model=body.get("model"),
        text="".join(texts),
        messages=[message] if body.get("output") else [],
        finish_reasons=_responses_finish_reasons(body, bool(calls)),
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        prompt_ids=body.get("prompt_token_ids"),
        response_ids=body.get("token_ids"),
        logprobs=logprobs or None,
        error=_error_message(body),
    )


def _read_messages(body: Mapping[str, Any]) -> Answer:
    message = answer_message(body)
    reason = finish_reason(body)
    usage = body.get("usage") or {}
    return Answer(
        id=body.get("id"),
        model=body.get("model"),
        text=_text_of(message.get("content")) if message else "",
        messages=[message] if message else [],
        finish_reasons=[reason] if reason else [],
        input_tokens=input_tokens(usage),
        output_tokens=usage.get("output_tokens"),
        error=_error_message(body),
    )


def _responses_finish_reasons(body: Mapping[str, Any], called_tools: bool) -> list[str]:
    """The status of a response in the words of Chat Completions."""
    status = body.get("status")
    if status == "completed":
        return ["tool_calls" if called_tools else "stop"]
    if status == "incomplete":
        reason = (body.get("incomplete_details") or {}).get("reason") or "incomplete"
        return ["length" if reason == "max_output_tokens" else str(reason)]
    return []


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or ():
                _add_call(message.setdefault("tool_calls", []), call)
        elif name == "role" or value is None:
            continue
        elif isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        else:
            message[name] = value


def _add_call(calls: list[dict[str, Any]], delta: Mapping[str, Any]) -> None:
    index = delta.get("index")
    index = len(calls) - 1 if index is None else index
    while len(calls) <= index:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], delta.get("function") or {}
    call["id"] = delta.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _add_logprobs(choice: dict[str, Any], logprobs: Mapping[str, Any] | None) -> None:
    for name in ("content", "token_logprobs"):
        if logprobs and logprobs.get(name):
            choice.setdefault("logprobs", {}).setdefault(name, []).extend(logprobs[name])


def _without_none(message: Mapping[str, Any]) -> Mapping[str, JSON]:
    return {name: value for name, value in message.items() if value is not None or name == "content"}


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content or ""


def _error_message(body: Mapping[str, Any]) -> str | None:
    error = body.get("error")
    if not error:
        return None
    return str(error.get("message") or error) if isinstance(error, Mapping) else str(error)
