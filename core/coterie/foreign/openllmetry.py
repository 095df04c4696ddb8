"""Spans of openllmetry (traceloop): ``traceloop.*`` beside the GenAI conventions, and the older ``gen_ai.prompt.0.role``."""

from __future__ import annotations

from collections.abc import Mapping

from coterie import conventions as c
from coterie.episodes import EdgeKind
from coterie.foreign import genai
from coterie.foreign.attributes import as_text, mapping_of, text_of, whole_of
from coterie.foreign.langgraph import agent_in, goto_targets, tool_output
from coterie.foreign.marks import LLM_OPERATIONS, operation_of, with_attributes, with_edge, without_operation
from coterie.foreign.messages import from_numbered
from coterie.vocabulary import JSON, Span

NAME = "openllmetry"

_KIND = "traceloop.span.kind"
_OLD_KIND = "llm.request.type"
_PROPERTIES = "traceloop.association.properties."


def recognises(span: Span) -> bool:
    """True for a span of openllmetry that reads differently from one of OpenTelemetry's own packages."""
    given = span.attributes
    return (
        _KIND in given
        or _OLD_KIND in given
        or given.get(c.PROVIDER) in ("langgraph", "crewai")
        or any(name.startswith("traceloop.") for name in given)
    )


def translated(span: Span) -> Span:
    """The span with our attributes."""
    operation, kind = operation_of(span), text_of(span.attributes.get(_KIND))
    if operation in LLM_OPERATIONS or _OLD_KIND in span.attributes:
        return _call(span)
    if kind == "tool" or operation == c.EXECUTE_TOOL:
        return _tool(span)
    if kind in ("agent", "workflow", "task") or operation == c.INVOKE_AGENT:
        return _agent(span, kind)
    return genai.told_handoff(span)


def _call(span: Span) -> Span:
    given = span.attributes
    span = with_attributes(span, {c.OPERATION: c.CHAT, c.AGENT_NAME: agent_in(_metadata(span))})
    if _OLD_KIND in given and c.INPUT_MESSAGES not in given:
        inputs = from_numbered(given, "gen_ai.prompt", "", "user")
        outputs = from_numbered(given, "gen_ai.completion", "", "assistant")
        reason = text_of(given.get("gen_ai.completion.0.finish_reason"))
        span = with_attributes(
            span,
            {
                c.INPUT_MESSAGES: as_text(inputs) if inputs else None,
                c.OUTPUT_MESSAGES: as_text(outputs) if outputs else None,
                c.FINISH_REASONS: [reason] if reason else None,
                c.INPUT_TOKENS: whole_of(given.get("gen_ai.usage.prompt_tokens", given.get(c.INPUT_TOKENS))),
                c.OUTPUT_TOKENS: whole_of(given.get("gen_ai.usage.completion_tokens", given.get(c.OUTPUT_TOKENS))),
            },
        )
    return genai.call(span)


def _tool(span: Span) -> Span:
    given = span.attributes
    arguments = given.get(c.TOOL_ARGUMENTS, given.get("traceloop.entity.input"))
    written = given.get(c.TOOL_RESULT, given.get("traceloop.entity.output"))
    # LangChain's runs are written down whole: the arguments stand inside, beside tags and metadata.
    run = mapping_of(arguments) if "input_str" in mapping_of(arguments) else {}
    result, call_id = tool_output(written)
    span = with_attributes(
        span,
        {
            c.OPERATION: c.EXECUTE_TOOL,
            c.AGENT_NAME: agent_in(_metadata(span)) or text_of(given.get(c.AGENT_NAME)),
            c.TOOL_NAME: text_of(given.get(c.TOOL_NAME)) or text_of(given.get("traceloop.entity.name")),
            c.TOOL_ARGUMENTS: as_text(run.get("inputs") or run.get("input_str")) if run else arguments,
            c.TOOL_RESULT: as_text(result) if result is not None else None,
            c.TOOL_CALL_ID: text_of(given.get(c.TOOL_CALL_ID))
            or call_id
            or text_of(mapping_of(run.get("kwargs")).get("tool_call_id")),
        },
    )
    for target in goto_targets(written):
        span = with_edge(span, EdgeKind.HANDOFF, None, target)
    return span


def _agent(span: Span, kind: str | None) -> Span:
    """An agent, a workflow, or neither: graphs, nodes and tasks all come as ``invoke_agent``."""
    given = span.attributes
    if given.get(c.PROVIDER) in ("langgraph", "langchain"):
        acting = text_of(_metadata(span).get("lc_agent_name"))
        if acting is not None and acting == given.get("traceloop.entity.name"):
            return with_attributes(span, {c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: acting})
        return _workflow(span) if kind == "workflow" else without_operation(span)
    name = text_of(given.get(c.AGENT_NAME))
    if kind == "task":
        return without_operation(span)
    if name is None and kind == "agent":
        name = text_of(given.get("traceloop.entity.name")) or span.name.removesuffix(".agent")
    if name is None or kind == "workflow":
        return _workflow(span)
    return with_attributes(span, {c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: name})


def _workflow(span: Span) -> Span:
    return with_attributes(span, {c.OPERATION: c.INVOKE_WORKFLOW, c.AGENT_NAME: None})


def _metadata(span: Span) -> Mapping[str, JSON]:
    return {
        name.removeprefix(_PROPERTIES): value for name, value in span.attributes.items() if name.startswith(_PROPERTIES)
    }
