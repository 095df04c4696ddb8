"""LLM calls: each is announced to capture, and told from here if it did not go over the OpenAI SDK."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.announced import AnnouncedCall, announcing
from coterie.roles import child_identity, current_acting
from coterie.uncaptured import ToldAnswer, ToldCall, record_told_answer, record_told_error
from coterie.vocabulary import JSON
from coterie_autogen.registering import is_recorded
from coterie_autogen.runs import Activation, TeamRun, current_frame
from coterie_autogen.watching import Watch, beginning, watched_call, watched_stream


def around_create(original: Callable[..., Any]) -> Callable[..., Any]:
    """``ChatCompletionClient.create``."""

    async def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await watched_call(_begin(self, *args, **kwargs), lambda: original(self, *args, **kwargs))

    return create


def around_create_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    """``ChatCompletionClient.create_stream``."""

    def create_stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        stream = original(self, *args, **kwargs)
        return (
            watched_stream(partial(_begin, self, *args, **kwargs), stream) if hasattr(stream, "__anext__") else stream
        )

    return create_stream


@dataclass(slots=True, eq=False)
class ModelCall:
    """One call of a model client."""

    told: ToldCall
    texts: list[str] = field(default_factory=list)
    """What was streamed."""
    result: Any = None
    passed_on: bool = False
    """True when this client has another one make the call, as a cache does."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While the client's own code runs."""
        token = _model_call.set(self)
        try:
            with announcing(self.told.announced):
                yield
        finally:
            _model_call.reset(token)

    def saw(self, item: Any) -> None:
        """The result, or a part of a streamed text before it."""
        if isinstance(item, str):
            self.texts.append(item)
        else:
            self.result = item

    def ended(self, error: BaseException | None) -> None:
        """The call is over."""
        self.told.announced.ended = True
        if self.passed_on:
            return
        if error is not None:
            record_told_error(self.told, error)
        elif not self.told.announced.captured:
            record_told_answer(self.told, _answer(self.result, "".join(self.texts)))


_model_call: ContextVar[ModelCall | None] = ContextVar("coterie_autogen_model_call", default=None)
"""The call whose client's code runs in this context."""

_PROVIDERS = {"anthropic": "anthropic", "ollama": "ollama", "azure": "azure.ai.inference", "openai": "openai"}
"""Module of ``autogen_ext.models`` to who serves the model."""


@beginning
def _begin(client: Any, messages: Sequence[Any] = (), *_: Any, **kwargs: Any) -> Watch | None:
    frame = current_frame()
    if not is_instrumentation_enabled() or not (frame is not None or is_recorded(None)):
        return None
    around = _model_call.get()
    if around is not None and not around.told.announced.ended:
        around.passed_on = True
    acting = current_acting()
    parent = acting.span if acting is not None else None
    if isinstance(frame, Activation):
        parent = frame.open()
    elif isinstance(frame, TeamRun):
        parent = frame.span
    arguments = {**(getattr(client, "_create_args", None) or {}), **(kwargs.get("extra_create_args") or {})}
    told = ToldCall(
        announced=AnnouncedCall(acting.identity if acting is not None else child_identity("agent"), parent),
        start_ns=time.time_ns(),
        messages=partial(_as_openai, messages),
        model=arguments.get("model"),
        provider=_provider(client),
        parameters=arguments,
        tools=partial(_tool_definitions, kwargs.get("tools") or ()),
    )
    return ModelCall(told)


def _provider(client: Any) -> str | None:
    package, _, rest = type(client).__module__.partition(".models.")
    return _PROVIDERS.get(rest.split(".")[0]) if package == "autogen_ext" else None


def _answer(result: Any, streamed: str) -> ToldAnswer:
    if result is None:
        return ToldAnswer(messages=[{"role": "assistant", "content": streamed}], text=streamed)
    message = _assistant_message(result.content, result.thought)
    return ToldAnswer(
        messages=[message],
        text=message["content"] or "",
        finish_reasons=[result.finish_reason],
        input_tokens=result.usage.prompt_tokens,
        output_tokens=result.usage.completion_tokens,
    )


def _as_openai(messages: Sequence[Any]) -> list[Mapping[str, JSON]]:
    converted: list[Mapping[str, JSON]] = []
    for message in messages:
        match type(message).__name__:
            case "SystemMessage":
                converted.append({"role": "system", "content": message.content})
            case "AssistantMessage":
                converted.append(_assistant_message(message.content, message.thought))
            case "FunctionExecutionResultMessage":
                converted += [
                    {"role": "tool", "tool_call_id": result.call_id, "content": result.content}
                    for result in message.content
                ]
            case _:
                converted.append({"role": "user", "content": _user_content(message.content)})
    return converted


def _assistant_message(content: Any, thought: str | None) -> dict[str, JSON]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in content
    ]
    return {"role": "assistant", "content": thought, "tool_calls": calls}


def _user_content(content: Any) -> JSON:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": part.data_uri}}
        for part in content
    ]


def _tool_definitions(tools: Sequence[Any]) -> list[JSON]:
    schemas = (tool if isinstance(tool, Mapping) else tool.schema for tool in tools)
    return [{"type": "function", "function": dict(schema)} for schema in schemas]
