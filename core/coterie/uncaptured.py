"""The ``chat`` span of an LLM call that capture did not see on the wire, made from what the framework tells.

Such a call went through an SDK that capture does not know, another transport, or a fake model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from coterie import conventions as names
from coterie.announced import AnnouncedCall
from coterie.capture.content import content_rules
from coterie.capture.prompting import sent_prompts
from coterie.prompts.versions import UsedPrompts
from coterie.scope import CallSummary, current_scope
from coterie.spans import set_tokens, start_span
from coterie.structure import ERROR_MESSAGE_LIMIT, agent_attributes
from coterie.vocabulary import JSON, Mode, new_id


@dataclass(frozen=True, slots=True)
class ToldCall:
    """An LLM call under way, as its framework announced it."""

    announced: AnnouncedCall
    start_ns: int
    messages: Callable[[], Sequence[Mapping[str, JSON]]]
    """Gives the messages in the form of Chat Completions. Asked only if capture did not see the call."""
    model: str | None = None
    provider: str | None = None
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    """``temperature``, ``max_tokens``, ``top_p``, ``seed``, or what gives them; what is not known is left out."""
    tools: Sequence[JSON] | Callable[[], Sequence[JSON]] = ()
    """The tools that were offered, or what gives them. Both are asked only if capture did not see the call."""
    call_id: str | None = None
    """The id that was sent along as a header, if one was."""
    prompts: UsedPrompts | None = None
    """The pinned prompts that were put into the request; None if nobody put them in."""


@dataclass(frozen=True, slots=True)
class ToldAnswer:
    """What the framework says that came back."""

    messages: Sequence[Mapping[str, JSON]] = ()
    """One assistant message a choice, in the form of Chat Completions."""
    text: str = ""
    """The text of the first."""
    id: str | None = None
    model: str | None = None
    finish_reasons: Sequence[str] = ()
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_ids: Sequence[int] | None = None
    response_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None


def record_told_answer(call: ToldCall, answer: ToldAnswer) -> None:
    """Record a call that was answered. Does nothing if capture saw it."""
    if call.announced.captured:
        return
    rules, identity, scope = content_rules(), call.announced.identity, current_scope()
    turn = scope.next_turn(identity.role) if scope else None
    call_id = call.call_id or new_id("ca")
    attributes: dict[str, Any] = {
        names.RESPONSE_ID: answer.id,
        names.RESPONSE_MODEL: answer.model,
        names.FINISH_REASONS: list(answer.finish_reasons) or None,
        names.INPUT_TOKENS: answer.input_tokens,
        names.OUTPUT_TOKENS: answer.output_tokens,
    }
    if rules.capture_content and answer.messages:
        attributes[names.OUTPUT_MESSAGES] = rules.json_text(list(answer.messages))
    span = _start_span(call, call_id, turn)
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if rules.exact or (scope is not None and scope.mode is Mode.TRAIN):
        set_tokens(span, answer.prompt_ids, answer.response_ids, answer.logprobs)
    span.end()
    if scope is not None:
        scope.add_call(CallSummary(call_id, identity.role, identity.path_text, turn or 0, rules.text(answer.text)))


def record_told_error(call: ToldCall, error: BaseException | str) -> None:
    """Record a call that ended with an error: the exception, or its text. Does nothing if capture saw it."""
    if call.announced.captured:
        return
    scope, rules = current_scope(), content_rules()
    turn = scope.next_turn(call.announced.identity.role) if scope else None
    span = _start_span(call, call.call_id or new_id("ca"), turn)
    span.set_attribute(names.ERROR_TYPE, type(error).__name__ if isinstance(error, BaseException) else "Error")
    message = rules.text(str(error)[:ERROR_MESSAGE_LIMIT]) if rules.capture_content else ""
    span.set_status(Status(StatusCode.ERROR, message))
    span.end()


def _start_span(call: ToldCall, call_id: str, turn: int | None) -> Span:
    scope, role = current_scope(), call.announced.identity.role
    if scope is not None and scope.replay is not None:
        scope.replay.depart(f"{role} called its model past the SDKs that are hooked, so nothing could be given back")
    parameters, rules = call.parameters() if callable(call.parameters) else call.parameters, content_rules()
    attributes: dict[str, Any] = {
        names.OPERATION: names.CHAT,
        **agent_attributes(call.announced.identity),
        names.CALL_ID: call_id,
        names.TURN: turn,
        names.PROVIDER: call.provider,
        names.REQUEST_MODEL: call.model,
        names.REQUEST_TEMPERATURE: parameters.get("temperature"),
        names.REQUEST_MAX_TOKENS: parameters.get("max_tokens"),
        names.REQUEST_TOP_P: parameters.get("top_p"),
        names.REQUEST_SEED: parameters.get("seed"),
    }
    attributes |= _used_prompts(call).attributes()
    if rules.capture_content:
        attributes[names.INPUT_MESSAGES] = rules.json_text(list(call.messages()))
        if tools := call.tools() if callable(call.tools) else call.tools:
            attributes[names.TOOL_DEFINITIONS] = rules.json_text(list(tools))
    return start_span(
        f"chat {call.model}" if call.model else "chat",
        {name: value for name, value in attributes.items() if value is not None},
        parent=call.announced.parent,
        kind=SpanKind.CLIENT,
        start_ns=call.start_ns,
    )


def _used_prompts(call: ToldCall) -> UsedPrompts:
    """The pinned prompts that the call had: if nobody put them in, perhaps the program itself did."""
    scope = current_scope()
    prompts = scope.prompts_of(call.announced.identity.role) if scope is not None else None
    if call.prompts is not None or scope is None or prompts is None:
        return call.prompts or UsedPrompts()
    tools = call.tools() if callable(call.tools) else call.tools
    return sent_prompts(call.messages(), tools, prompts, handed_out=scope.handed_out)
