"""Changing spans on the way to ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coterie import conventions as c
from coterie.episodes import EdgeKind
from coterie.foreign.attributes import text_of
from coterie.foreign.langgraph import CONTROL_FLOW
from coterie.vocabulary import JSON, Span, SpanEvent, SpanStatus

LLM_OPERATIONS = frozenset({c.CHAT, "text_completion", "generate_content"})
OPERATIONS = LLM_OPERATIONS | {c.INVOKE_AGENT, c.INVOKE_WORKFLOW, c.EXECUTE_TOOL}


def is_ours(span: Span) -> bool:
    """True for a span that Coterie made."""
    return c.CALL_ID in span.attributes or c.ROLE in span.attributes or c.AGENT_PATH in span.attributes


def operation_of(span: Span) -> str | None:
    """Which operation a span is; None if it says none, or nothing that could be one."""
    return text_of(span.attributes.get(c.OPERATION))


def with_attributes(span: Span, values: Mapping[str, JSON]) -> Span:
    """The span with these attributes set; None takes one away."""
    attributes = {name: value for name, value in {**span.attributes, **values}.items() if value is not None}
    return replace(span, attributes=attributes)


def with_edge(span: Span, kind: EdgeKind, source: str | None, target: str, time_ns: int | None = None) -> Span:
    """The span with a hand-off told on it; a source of None is the agent that the span belongs to."""
    told = {c.HANDOFF_SOURCE: source, c.HANDOFF_TARGET: target, c.HANDOFF_KIND: kind.value}
    values = {name: value for name, value in told.items() if value}
    event = SpanEvent(c.HANDOFF_EVENT, span.end_ns if time_ns is None else time_ns, values)
    return replace(span, events=(*span.events, event))


def without_operation(span: Span) -> Span:
    """The span as a mere step of the way up: no agent, call or tool, and nothing told on it."""
    events = tuple(event for event in span.events if event.name != c.HANDOFF_EVENT)
    return with_attributes(replace(span, events=events), {c.OPERATION: None, c.AGENT_NAME: None})


def without_control_flow(span: Span) -> Span:
    """The span without its error if that is how LangGraph moves control."""
    kind = str(span.attributes.get(c.ERROR_TYPE, "")).rpartition(".")[2]
    if kind in CONTROL_FLOW or (span.status is SpanStatus.ERROR and span.status_message.startswith("Command(graph=")):
        span = replace(span, status=SpanStatus.UNSET, status_message="")
        return with_attributes(span, {c.ERROR_TYPE: None})
    return span
