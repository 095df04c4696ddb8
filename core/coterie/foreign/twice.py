"""One call, recorded by several instrumentors: it counts once, and ours wins.

A framework's instrumentor and one of the SDK beneath it nest their spans; one of theirs and ours stand side by side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from coterie import conventions as c
from coterie.foreign.attributes import list_of, mapping_of, text_of
from coterie.foreign.marks import LLM_OPERATIONS, OPERATIONS, is_ours, operation_of, with_attributes, without_operation
from coterie.vocabulary import Span, SpanEvent


def counted_once(spans: Sequence[Span], names: Mapping[str, str]) -> Sequence[Span]:
    """The spans with all but one record of each call, tool call and agent made a mere step of the way up.

    ``names`` gives the convention of each foreign span by its id.
    """
    return _beside_ours(_nested(spans), names)


def _nested(spans: Sequence[Span]) -> Sequence[Span]:
    """An LLM call within an LLM call is the same one, and so is a tool's within one of that tool.

    Of two LLM calls the inner is nearer to the wire; what it lacks is taken from the outer. An outer call with several
    inner ones tried again: it stands for them all.
    """
    by_id = {span.span_id: span for span in spans}
    inner: dict[str, list[Span]] = defaultdict(list)
    for span in by_id.values():
        outer = _same_call_above(span, by_id)
        if outer is not None:
            inner[outer.span_id].append(span)
    # Inner pairs first, so that of three nested spans one is left.
    for outer_id in sorted(inner, key=lambda span_id: -by_id[span_id].start_ns):
        outer, within = by_id[outer_id], [by_id[one.span_id] for one in inner[outer_id]]
        for span in _one_call(outer, [one for one in within if not is_ours(one)]):
            by_id[span.span_id] = span
    last = {span.span_id: at for at, span in enumerate(spans)}
    return [by_id[span.span_id] if last[span.span_id] == at else span for at, span in enumerate(spans)]


def _one_call(outer: Span, theirs: Sequence[Span]) -> Iterator[Span]:
    """The spans that change when the foreign ones within an outer one are the same call."""
    if is_ours(outer) or len(theirs) > 1:
        yield from (without_operation(span) for span in theirs)
    elif theirs and operation_of(outer) == c.EXECUTE_TOOL:
        yield without_operation(theirs[0])
        yield with_attributes(outer, {**theirs[0].attributes, **outer.attributes})
    elif theirs:
        yield with_attributes(theirs[0], {**outer.attributes, **theirs[0].attributes})
        yield without_operation(outer)


def _same_call_above(span: Span, by_id: Mapping[str, Span]) -> Span | None:
    operation = operation_of(span)
    if operation is None or operation not in LLM_OPERATIONS | {c.EXECUTE_TOOL}:
        return None
    for above in _ancestors(span, by_id):
        outer = operation_of(above)
        if outer is None or outer not in OPERATIONS:
            continue
        if operation in LLM_OPERATIONS:
            return above if outer in LLM_OPERATIONS else None
        same = outer == operation and above.attributes.get(c.TOOL_NAME) == span.attributes.get(c.TOOL_NAME)
        return above if same else None
    return None


def _ancestors(span: Span, by_id: Mapping[str, Span]) -> Iterator[Span]:
    seen = {span.span_id}
    above = by_id.get(span.parent_id) if span.parent_id else None
    while above is not None and above.span_id not in seen:
        seen.add(above.span_id)
        yield above
        above = by_id.get(above.parent_id) if above.parent_id else None


def _beside_ours(spans: Sequence[Span], names: Mapping[str, str]) -> Sequence[Span]:
    """Foreign records of what ours recorded as well. What only they recorded stays."""
    ours = [span for span in spans if is_ours(span)]
    if not ours:
        return spans
    agents = {name for span in ours if (name := text_of(span.attributes.get(c.AGENT_NAME)))}
    taken: set[tuple[str, str]] = set()
    result = []
    for span in sorted(spans, key=lambda one: one.start_ns):
        convention = names.get(span.span_id)
        if convention is None:
            result.append(span)
            continue
        twin = _twin(span, [one for one in ours if (convention, one.span_id) not in taken])
        if twin is None:
            result.append(_without_edges_of(span, agents))
            continue
        if operation_of(span) in LLM_OPERATIONS:
            taken.add((convention, twin.span_id))
        result.append(without_operation(span))
    return result


def _twin(span: Span, ours: Sequence[Span]) -> Span | None:
    operation = operation_of(span)
    if operation is None:
        return None
    beside = [one for one in ours if one.start_ns <= span.end_ns and span.start_ns <= one.end_ns]
    if operation in LLM_OPERATIONS:
        calls = [one for one in beside if operation_of(one) in LLM_OPERATIONS]
        alike = [
            (rank, abs(one.start_ns - span.start_ns), one.span_id, one)
            for one in calls
            if (rank := _unlikeness(span, one)) is not None
        ]
        return min(alike, key=lambda found: found[:3])[3] if alike else None
    name = {c.EXECUTE_TOOL: c.TOOL_NAME, c.INVOKE_AGENT: c.AGENT_NAME}.get(operation)
    if name is None:
        return None
    return next(
        (
            one
            for one in beside
            if operation_of(one) == operation and one.attributes.get(name) == span.attributes.get(name)
        ),
        None,
    )


def _unlikeness(theirs: Span, ours: Span) -> int | None:
    """0 for the same response, 1 for the same words or tool calls, 2 where too little was recorded; None for two calls."""
    ids = [text_of(span.attributes.get(c.RESPONSE_ID)) for span in (theirs, ours)]
    if all(ids):
        return 0 if ids[0] == ids[1] else None
    # Not every instrumentor writes the words beside a tool call, so each is compared where both have it.
    pairs = [pair for pair in zip(_said(theirs), _said(ours), strict=True) if all(pair)]
    if any(one != other for one, other in pairs):
        return None
    return 1 if pairs else 2


def _said(span: Span) -> tuple[str, str]:
    """The words of an answer, and the ids of its tool calls."""
    messages = [mapping_of(message) for message in list_of(span.attributes.get(c.OUTPUT_MESSAGES))]
    words = [text_of(message.get("content")) or "" for message in messages]
    calls = [mapping_of(call) for message in messages for call in list_of(message.get("tool_calls"))]
    return "".join(words), " ".join(text_of(call.get("id")) or "" for call in calls)


def _without_edges_of(span: Span, agents: Collection[str]) -> Span:
    """The span without what it tells of agents that ours recorded: ours told that too, if it was so."""

    def known(event: SpanEvent) -> bool:
        source = text_of(event.attributes.get(c.HANDOFF_SOURCE, span.attributes.get(c.AGENT_NAME)))
        target = text_of(event.attributes.get(c.HANDOFF_TARGET))
        return event.name == c.HANDOFF_EVENT and (source in agents or target in agents)

    return replace(span, events=tuple(event for event in span.events if not known(event)))
