"""The ``chat`` span of an LLM call that capture did not see on the wire, made from what LangChain tells.

Such a call went through another SDK, or the model is a fake one. The span has no token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from coterie import conventions as names
from coterie.announced import AnnouncedCall
from coterie.capture.content import content_rules
from coterie.scope import CallSummary, current_scope
from coterie.spans import tracer
from coterie.vocabulary import JSON, new_id


@dataclass(frozen=True, slots=True)
class PendingCall:
    """An LLM call under way, as LangChain announced it."""

    announced: AnnouncedCall
    messages: Sequence[Any]
    """LangChain's messages, or the prompt's text alone."""
    parameters: Mapping[str, Any]
    """How the model is invoked: model, temperature, tools."""
    metadata: Mapping[str, Any]
    start_ns: int


def record_answer(call: PendingCall, result: Any) -> None:
    """Record a call that was answered with ``result``, an ``LLMResult``."""
    generations = result.generations[0] if result.generations else []
    answers = [message for g in generations if (message := getattr(g, "message", None)) is not None]
    first = answers[0] if answers else None
    about: Mapping[str, Any] = getattr(first, "response_metadata", None) or {}
    output = result.llm_output or {}
    rules, identity, scope = content_rules(), call.announced.identity, current_scope()
    text = generations[0].text if generations else ""
    attributes = {
        names.RESPONSE_ID: about.get("id") or output.get("id"),
        names.RESPONSE_MODEL: about.get("model_name") or about.get("model") or output.get("model_name"),
        names.FINISH_REASONS: [str(reason) for g in generations if (reason := _finish_reason(g))] or None,
        **_usage(first, output),
    }
    if rules.capture_content:
        messages = _as_openai(answers) if answers else [{"role": "assistant", "content": g.text} for g in generations]
        attributes[names.OUTPUT_MESSAGES] = rules.json_text(messages)
    turn = scope.next_turn(identity.role) if scope else None
    call_id = new_id("ca")
    span = _start_span(call, call_id, turn)
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    span.end()
    if scope is not None:
        scope.add_call(CallSummary(call_id, identity.role, identity.path_text, turn or 0, rules.text(text)))


def record_error(call: PendingCall, error: BaseException) -> None:
    """Record a call that ended with ``error``."""
    scope, rules = current_scope(), content_rules()
    turn = scope.next_turn(call.announced.identity.role) if scope else None
    span = _start_span(call, new_id("ca"), turn)
    span.set_attribute(names.ERROR_TYPE, type(error).__name__)
    span.set_status(Status(StatusCode.ERROR, rules.text(str(error)[:2000]) if rules.capture_content else ""))
    span.end()


def _start_span(call: PendingCall, call_id: str, turn: int | None) -> trace.Span:
    identity, parameters, metadata = call.announced.identity, call.parameters, call.metadata
    model = parameters.get("model") or parameters.get("model_name") or metadata.get("ls_model_name")
    rules = content_rules()
    attributes = {
        names.OPERATION: names.CHAT,
        names.AGENT_NAME: identity.agent,
        names.ROLE: identity.role,
        names.AGENT_PATH: identity.path_text,
        names.CALL_ID: call_id,
        names.TURN: turn,
        names.PROVIDER: metadata.get("ls_provider"),
        names.REQUEST_MODEL: model,
        names.REQUEST_TEMPERATURE: parameters.get("temperature", metadata.get("ls_temperature")),
        names.REQUEST_MAX_TOKENS: parameters.get("max_tokens", metadata.get("ls_max_tokens")),
        names.REQUEST_TOP_P: parameters.get("top_p"),
        names.REQUEST_SEED: parameters.get("seed"),
    }
    if rules.capture_content:
        attributes[names.INPUT_MESSAGES] = rules.json_text(_as_openai(call.messages))
        if parameters.get("tools"):
            attributes[names.TOOL_DEFINITIONS] = rules.json_text(parameters["tools"])
    return tracer().start_span(
        f"chat {model}" if model else "chat",
        context=trace.set_span_in_context(call.announced.parent) if call.announced.parent else None,
        kind=SpanKind.CLIENT,
        attributes={name: value for name, value in attributes.items() if value is not None},
        start_time=call.start_ns,
    )


def _as_openai(messages: Sequence[Any]) -> list[JSON]:
    from langchain_core.messages import convert_to_openai_messages

    plain = [{"role": "user", "content": message} if isinstance(message, str) else message for message in messages]
    converted = convert_to_openai_messages(plain)
    return converted if isinstance(converted, list) else [converted]


def _finish_reason(generation: Any) -> Any:
    message = getattr(generation, "message", None)
    about = (getattr(message, "response_metadata", None) or {}) | (generation.generation_info or {})
    return about.get("finish_reason") or about.get("stop_reason")


def _usage(message: Any, output: Mapping[str, Any]) -> dict[str, JSON]:
    usage = getattr(message, "usage_metadata", None)
    if usage:
        return {names.INPUT_TOKENS: usage.get("input_tokens"), names.OUTPUT_TOKENS: usage.get("output_tokens")}
    usage = output.get("token_usage") or {}
    return {names.INPUT_TOKENS: usage.get("prompt_tokens"), names.OUTPUT_TOKENS: usage.get("completion_tokens")}
