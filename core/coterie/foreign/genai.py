"""Spans of OpenTelemetry's own packages (``opentelemetry-instrumentation-genai-*``, ``-openai-v2``, ``-openai-agents-v2``).

They follow the conventions that ours follow, so what is left is the form of the messages and a few habits.
"""

from __future__ import annotations

from coterie import conventions as c
from coterie.episodes import EdgeKind
from coterie.foreign.attributes import as_text, list_of, text_of
from coterie.foreign.langgraph import goto_targets, tool_output
from coterie.foreign.marks import LLM_OPERATIONS, operation_of, with_attributes, with_edge
from coterie.foreign.messages import finish_reasons, from_parts, openai_reason, system_message
from coterie.vocabulary import Span

NAME = "genai"

_NO_AGENT = "OpenAI Agents instrumentation"
"""The description that openai-agents-v2 puts on every span that it gives the made-up name ``OpenAI Agent``."""


def recognises(span: Span) -> bool:
    """True for a span with an operation of the GenAI conventions."""
    return c.OPERATION in span.attributes


def translated(span: Span) -> Span:
    """The span with our attributes."""
    span = without_made_up_name(span)
    operation = operation_of(span)
    if operation in LLM_OPERATIONS:
        return call(span)
    if operation == c.EXECUTE_TOOL:
        written = span.attributes.get(c.TOOL_RESULT)
        for target in goto_targets(written):
            span = with_edge(span, EdgeKind.HANDOFF, None, target)
        result, call_id = tool_output(written)
        known = text_of(span.attributes.get(c.TOOL_CALL_ID)) or call_id
        span = with_attributes(span, {c.TOOL_RESULT: result, c.TOOL_CALL_ID: known})
    if operation == c.INVOKE_AGENT and text_of(span.attributes.get(c.AGENT_NAME)) is None:
        return with_attributes(span, {c.OPERATION: c.INVOKE_WORKFLOW})
    return told_handoff(span)


def call(span: Span) -> Span:
    """An LLM call with its messages in OpenAI's form."""
    given = span.attributes
    inputs = from_parts(given.get(c.INPUT_MESSAGES), "user")
    outputs = from_parts(given.get(c.OUTPUT_MESSAGES), "assistant")
    if not any(message.get("role") in ("system", "developer") for message in inputs):
        inputs = [*system_message(given.get("gen_ai.system_instructions")), *inputs]
    reasons = [openai_reason(one) for one in list_of(given.get(c.FINISH_REASONS)) if isinstance(one, str)]
    return with_attributes(
        span,
        {
            c.INPUT_MESSAGES: as_text(inputs) if inputs else None,
            c.OUTPUT_MESSAGES: as_text(outputs) if outputs else None,
            c.FINISH_REASONS: reasons or finish_reasons(given.get(c.OUTPUT_MESSAGES)) or None,
        },
    )


def told_handoff(span: Span) -> Span:
    """The span with the hand-off that its attributes name."""
    source = text_of(span.attributes.get("gen_ai.handoff.from_agent"))
    target = text_of(span.attributes.get("gen_ai.handoff.to_agent"))
    return with_edge(span, EdgeKind.HANDOFF, source, target) if target and target != "unknown" else span


def without_made_up_name(span: Span) -> Span:
    """The span without a name that is no agent's."""
    made_up = span.attributes.get("gen_ai.agent.description") == _NO_AGENT
    if made_up and span.attributes.get(c.OPERATION) != c.INVOKE_AGENT:
        return with_attributes(span, {c.AGENT_NAME: None})
    return span
