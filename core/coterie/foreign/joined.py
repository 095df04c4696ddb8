"""What foreign spans say only together: a coworker's agent, a tool call's arguments, a hand-off that only its tool tells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from coterie import conventions as c
from coterie.episodes import EdgeKind
from coterie.foreign.attributes import list_of, mapping_of, parsed, text_of
from coterie.foreign.marks import LLM_OPERATIONS, is_ours, operation_of, with_attributes, with_edge
from coterie.roles import role_of
from coterie.vocabulary import JSON, Span

_CREW_TOOLS = frozenset({"delegate_work_to_coworker", "ask_question_to_coworker"})
_TRANSFER = re.compile(r"transfer_to_(.+)")


def with_crew_delegations(spans: Sequence[Span]) -> Sequence[Span]:
    """CrewAI's coworkers: the agent that a delegation tool names gets a span of its own below the tool.

    Where the tracer wrote the coworker's agent and no tool, the agent within an agent is the delegation.
    """
    by_id = {span.span_id: span for span in spans}
    coworkers: dict[str, Span] = {}
    for span in spans:
        name = _coworker(span)
        inside = [one for one in spans if one.parent_id == span.span_id] if name else []
        if name and not any(_is_agent(one) for one in inside):
            coworkers[span.span_id] = replace(
                span,
                span_id=span.span_id + "-coworker",
                parent_id=span.span_id,
                name=f"{c.INVOKE_AGENT} {name}",
                attributes={c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: name},
                events=(),
            )
    result = []
    for span in spans:
        above = by_id.get(span.parent_id or "")
        if span.parent_id in coworkers:
            result.append(replace(span, parent_id=coworkers[span.parent_id].span_id))
        elif _is_crew_agent(span) and above is not None and _is_crew_agent(above):
            source, target = str(above.attributes[c.AGENT_NAME]), str(span.attributes[c.AGENT_NAME])
            told = source != target and not is_ours(span)
            result.append(with_edge(span, EdgeKind.DELEGATION, source, target, span.start_ns) if told else span)
        else:
            result.append(span)
    return [*result, *coworkers.values()]


def with_tool_messages(spans: Sequence[Span]) -> Sequence[Span]:
    """Tool calls with what the LLM calls beside them say of the same call id: the arguments asked for, the result told."""
    asked: dict[str, JSON] = {}
    told: dict[str, JSON] = {}
    for span in spans:
        if not _is_call(span):
            continue
        for message in _messages(span, c.OUTPUT_MESSAGES):
            asked |= {call_id: function.get("arguments") for call_id, function in _functions(message)}
        for message in _messages(span, c.INPUT_MESSAGES):
            call_id = text_of(message.get("tool_call_id"))
            if message.get("role") == "tool" and call_id:
                told[call_id] = message.get("content")
    return [_with_message(span, asked, told) for span in spans]


def with_transfers(spans: Sequence[Span]) -> Sequence[Span]:
    """Hand-offs that no span tells: the model called ``transfer_to_NAME``, and an agent of that name acted after it.

    OpenAI Agents, AutoGen and LangGraph's swarms all name their hand-off tools so.
    """
    known = {(source, target) for span in spans for source, target in _told(span)}
    starts: dict[str, tuple[str, int]] = {}
    for span in spans:
        name = text_of(span.attributes.get(c.AGENT_NAME))
        if name and (_is_agent(span) or _is_call(span)):
            starts[role_of(name)] = (name, max(span.start_ns, starts.get(role_of(name), ("", 0))[1]))
    by_id = {span.span_id: span for span in spans}
    result = []
    for span in spans:
        target = None if is_ours(span) else _transfer(span)
        name, last_start = starts.get(role_of(target), ("", 0)) if target else ("", 0)
        source = _agent_of(span, by_id) if name else None
        if source and source != name and last_start >= span.end_ns and (source, name) not in known:
            span = with_edge(span, EdgeKind.HANDOFF, source, name)
        result.append(span)
    return result


def _coworker(span: Span) -> str | None:
    if (
        is_ours(span)
        or operation_of(span) != c.EXECUTE_TOOL
        or text_of(span.attributes.get(c.TOOL_NAME)) not in _CREW_TOOLS
    ):
        return None
    return text_of(mapping_of(span.attributes.get(c.TOOL_ARGUMENTS)).get("coworker"))


def _is_agent(span: Span) -> bool:
    return operation_of(span) == c.INVOKE_AGENT


def _is_crew_agent(span: Span) -> bool:
    return _is_agent(span) and span.attributes.get(c.PROVIDER) == "crewai" and c.AGENT_NAME in span.attributes


def _is_call(span: Span) -> bool:
    return operation_of(span) in LLM_OPERATIONS


def _messages(span: Span, name: str) -> Iterator[Mapping[str, JSON]]:
    return (one for one in list_of(span.attributes.get(name)) if isinstance(one, Mapping))


def _functions(message: Mapping[str, JSON]) -> Iterator[tuple[str, Mapping[str, JSON]]]:
    for call in list_of(message.get("tool_calls")):
        fields = mapping_of(call)
        call_id = text_of(fields.get("id"))
        if call_id:
            yield call_id, mapping_of(fields.get("function"))


def _with_message(span: Span, asked: Mapping[str, JSON], told: Mapping[str, JSON]) -> Span:
    call_id = text_of(span.attributes.get(c.TOOL_CALL_ID))
    if is_ours(span) or operation_of(span) != c.EXECUTE_TOOL or call_id is None:
        return span
    values: dict[str, JSON] = {}
    # LangChain's tracers write the text of a single argument alone: the model's own JSON says more.
    if not isinstance(parsed(span.attributes.get(c.TOOL_ARGUMENTS)), Mapping) and call_id in asked:
        values[c.TOOL_ARGUMENTS] = asked[call_id]
    if c.TOOL_RESULT not in span.attributes and call_id in told:
        values[c.TOOL_RESULT] = told[call_id]
    return with_attributes(span, values) if values else span


def _told(span: Span) -> Iterator[tuple[str, str]]:
    for event in span.events:
        if event.name == c.HANDOFF_EVENT and event.attributes.get(c.HANDOFF_KIND) == EdgeKind.HANDOFF:
            source = event.attributes.get(c.HANDOFF_SOURCE, span.attributes.get(c.AGENT_NAME))
            yield str(source), str(event.attributes.get(c.HANDOFF_TARGET))


def _transfer(span: Span) -> str | None:
    """The agent that a call asks to hand over to; the frameworks follow the first of several."""
    if not _is_call(span):
        return None
    for message in _messages(span, c.OUTPUT_MESSAGES):
        for _, function in _functions(message):
            found = _TRANSFER.fullmatch(str(function.get("name")))
            if found:
                return found[1]
    return None


def _agent_of(span: Span, by_id: Mapping[str, Span]) -> str | None:
    seen: set[str] = set()
    above: Span | None = span
    while above is not None and above.span_id not in seen:
        name = text_of(above.attributes.get(c.AGENT_NAME))
        if name:
            return name
        seen.add(above.span_id)
        above = by_id.get(above.parent_id) if above.parent_id else None
    return None
