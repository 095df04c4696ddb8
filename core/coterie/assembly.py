"""Builds episodes from spans: turns, edges and tool calls, each with the agent that it belongs to.

Everything is read from the span that made it or from that span's ancestors, never guessed from the order in time, so
parallel branches stay exact. Spans may come from anybody: what is missing or odd becomes None or an empty text,
never an exception.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from coterie import conventions as c
from coterie.episodes import Edge, EdgeKind, Episode, ToolCall, Turn
from coterie.foreign.attributes import parsed
from coterie.foreign.translation import translate
from coterie.missing import UNKNOWN_AGENT, missing_in
from coterie.prompts.versions import parts_in
from coterie.roles import role_of
from coterie.store.base import Store
from coterie.vocabulary import JSON, AttemptState, Reward, Span, SpanStatus

_LLM_OPERATIONS = frozenset({c.CHAT, "text_completion", "generate_content"})


async def load_episodes(store: Store, rollout_ids: Sequence[str]) -> list[Episode]:
    """The episode of each rollout's last successful attempt, in the order given; rollouts without one are left out.

    Raises:
        NotFoundError: a rollout does not exist.
    """
    rollouts = await store.get_rollouts(rollout_ids)
    succeeded = await _last_successes(store, rollout_ids)
    spans = await store.get_spans(list(succeeded.values()))
    rewards = await store.get_rewards(list(succeeded.values()))
    return [
        build_episode(rollout.task_id, attempt_id, rollout.id, spans.get(attempt_id, ()), rewards.get(attempt_id, ()))
        for rollout in rollouts
        if (attempt_id := succeeded.get(rollout.id)) is not None
    ]


async def load_rewards(store: Store, rollout_ids: Sequence[str]) -> dict[str, Sequence[Reward]]:
    """The rewards of each rollout's last successful attempt, by rollout id; rollouts without one are left out."""
    succeeded = await _last_successes(store, rollout_ids)
    rewards = await store.get_rewards(list(succeeded.values()))
    return {rollout_id: rewards.get(attempt_id, ()) for rollout_id, attempt_id in succeeded.items()}


def build_episode(
    task_id: str, attempt_id: str, rollout_id: str, spans: Iterable[Span], rewards: Iterable[Reward]
) -> Episode:
    """The role-aware view of one attempt. Failed calls are turns without token ids; a retried call is one turn."""
    recorded = list(spans)
    known = translate(recorded)
    tree = _SpanTree(sorted(known, key=lambda span: (span.start_ns, span.span_id)))
    turns, edges = _turns(tree), _edges(tree)
    tool_calls = [_tool_call(span, tree) for span in tree.spans if _operation(span) == c.EXECUTE_TOOL]
    agents = {tree.agent(span)[0] for span in tree.spans if _operation(span) == c.INVOKE_AGENT}
    return Episode(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        task_id=task_id,
        turns=turns,
        edges=edges,
        tool_calls=tool_calls,
        rewards=tuple(rewards),
        missing=missing_in(turns, edges, tool_calls, agents=len(agents), foreign=known is not recorded),
        diverged=next((said for span in recorded if (said := _text(span, c.REPLAY_DIVERGED))), None),
    )


async def _last_successes(store: Store, rollout_ids: Sequence[str]) -> dict[str, str]:
    attempts = await store.get_attempts(rollout_ids)
    return {
        rollout_id: attempt.id
        for rollout_id in rollout_ids
        for attempt in attempts.get(rollout_id, ())
        if attempt.state is AttemptState.SUCCEEDED
    }


class _SpanTree:
    """Spans by start time, with the way up from each."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans
        self._by_id = {span.span_id: span for span in spans}
        self.tools_with_agents = frozenset(
            ancestor.span_id
            for span in spans
            if _operation(span) == c.INVOKE_AGENT
            for ancestor in takewhile(lambda one: _operation(one) != c.INVOKE_AGENT, self.ancestors(span))
            if _operation(ancestor) == c.EXECUTE_TOOL
        )
        """Ids of tool calls in which an agent ran."""

    def ancestors(self, span: Span) -> Iterator[Span]:
        """Parent, grandparent and so on, as far as they are known."""
        seen = {span.span_id}
        parent = self._by_id.get(span.parent_id) if span.parent_id else None
        while parent is not None and parent.span_id not in seen:
            seen.add(parent.span_id)
            yield parent
            parent = self._by_id.get(parent.parent_id) if parent.parent_id else None

    def invocation(self, span: Span) -> str | None:
        """The id of the nearest run of an agent above a span. A run right within one of the same agent is part of it."""
        runs = [one for one in self.ancestors(span) if _operation(one) == c.INVOKE_AGENT]
        if not runs:
            return None
        path = self.agent(runs[0])[2]
        return list(takewhile(lambda run: self.agent(run)[2] == path, runs))[-1].span_id

    def agent(self, span: Span) -> tuple[str, str, str]:
        """Name, role and path of the agent that a span belongs to: its own attributes, else those of its ancestors."""
        own = _text(span, c.AGENT_NAME), _text(span, c.ROLE), _text(span, c.AGENT_PATH)
        if all(own):
            return own[0] or "", own[1] or "", own[2] or ""
        line = [span, *self.ancestors(span)]
        name = next((found for one in line if (found := _text(one, c.AGENT_NAME))), None)
        _, role, path = own
        if not role:
            role = next(
                (found for one in line if _text(one, c.AGENT_NAME) == name and (found := _text(one, c.ROLE))), None
            )
        if not path:
            agents = [_text(one, c.AGENT_NAME) or one.name for one in line if _operation(one) == c.INVOKE_AGENT]
            names = [*reversed(agents), name or role or UNKNOWN_AGENT]
            path = "/".join(agent for at, agent in enumerate(names) if at == 0 or names[at - 1] != agent)
        name = name or role or path.rsplit("/", 1)[-1]
        return name, role or role_of(name), path


def _turns(tree: _SpanTree) -> list[Turn]:
    records: dict[str, list[Span]] = {}
    for span in tree.spans:
        if _operation(span) in _LLM_OPERATIONS:
            records.setdefault(_text(span, c.CALL_ID) or span.span_id, []).append(span)
    turns = [_one_turn(spans, tree) for spans in records.values()]
    return _indexed(sorted(turns, key=lambda turn: (turn.start_ns, turn.index)))


def _one_turn(spans: Sequence[Span], tree: _SpanTree) -> Turn:
    """The turn of one call, from all records of it: the program's that made it, and those of a gateway on its way, one for
    each time that the program's SDK sent it.

    The one with token ids tells what the model saw and said. Who called, and how it ended there, the program knows better.
    """
    turns = [_turn(span, tree) for span in spans]
    if len(turns) == 1:
        return turns[0]
    best = max(turns, key=lambda turn: (turn.trainable, turn.error is None))
    told = next((turn for span, turn in zip(spans, turns, strict=True) if _text(span, c.RECORDED_BY) is None), best)
    if told is best:
        return best
    return replace(
        best,
        agent=told.agent,
        role=told.role,
        agent_path=told.agent_path,
        index=told.index,
        messages=best.messages or told.messages,
        text=best.text or told.text,
        output=best.output or told.output,
        response_ids=None if told.error else best.response_ids,
        logprobs=None if told.error else best.logprobs,
        prompt_name=best.prompt_name or told.prompt_name,
        prompt_version=best.prompt_version if best.prompt_name else told.prompt_version,
        prompt_parts=best.prompt_parts or told.prompt_parts,
        error=told.error,
        start_ns=told.start_ns,
        end_ns=told.end_ns,
        state_key=told.state_key or best.state_key,
        invocation=told.invocation or best.invocation,
    )


def _turn(span: Span, tree: _SpanTree) -> Turn:
    agent, role, path = tree.agent(span)
    output = _messages(span, c.OUTPUT_MESSAGES)
    error = _error(span)
    return Turn(
        call_id=_text(span, c.CALL_ID) or span.span_id,
        agent=agent,
        role=role,
        agent_path=path,
        index=_whole(span, c.TURN, -1),
        messages=_messages(span, c.INPUT_MESSAGES),
        text=next((text for message in output if (text := message_text(message))), ""),
        output=output,
        prompt_ids=_integers(span, c.PROMPT_TOKENS),
        # What a call had given before it broke off is no sample of the policy: its end was not its own.
        response_ids=None if error else _integers(span, c.RESPONSE_TOKENS),
        logprobs=None if error else _floats(span, c.LOGPROBS),
        policy=_text(span, c.POLICY_NAME),
        policy_version=_whole(span, c.POLICY_VERSION, None),
        prompt_name=_text(span, c.PROMPT_NAME),
        prompt_version=_whole(span, c.PROMPT_VERSION, None),
        prompt_parts=parts_in(span.attributes.get(c.PROMPT_PARTS)),
        model=_text(span, c.RESPONSE_MODEL) or _text(span, c.REQUEST_MODEL),
        finish_reason=_first(parsed(span.attributes.get(c.FINISH_REASONS))),
        error=error,
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        state_key=_text(span, c.STATE_KEY),
        invocation=tree.invocation(span),
        answered_by=_text(span, c.ANSWERED_BY),
    )


def _indexed(turns: Sequence[Turn]) -> list[Turn]:
    """Count a role's turns by start time where the spans do not count them, each number once, themselves."""
    numbers: dict[str, list[int]] = {}
    for turn in turns:
        numbers.setdefault(turn.role, []).append(turn.index)
    counted = {role for role, found in numbers.items() if min(found) < 0 or len(set(found)) < len(found)}
    seen: Counter[str] = Counter()
    result = []
    for turn in turns:
        result.append(replace(turn, index=seen[turn.role]) if turn.role in counted else turn)
        seen[turn.role] += 1
    return result


def _tool_call(span: Span, tree: _SpanTree) -> ToolCall:
    _, role, path = tree.agent(span)
    return ToolCall(
        name=_text(span, c.TOOL_NAME) or span.name,
        role=role,
        agent_path=path,
        call_id=_text(span, c.TOOL_CALL_ID),
        arguments=_shown(span.attributes.get(c.TOOL_ARGUMENTS)),
        result=_shown(span.attributes.get(c.TOOL_RESULT)),
        error=_error(span),
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        carries=_carried_edge(span, tree),
    )


def _carried_edge(span: Span, tree: _SpanTree) -> EdgeKind | None:
    marked = _text(span, c.HANDOFF_KIND)
    if marked is not None:
        return next((kind for kind in EdgeKind if kind == marked), None)
    return EdgeKind.DELEGATION if span.span_id in tree.tools_with_agents else None


def _edges(tree: _SpanTree) -> list[Edge]:
    told = [edge for span in tree.spans for edge in _told_edges(span, tree)]
    # A plugin may report a delegation that the nesting shows as well: it is one edge.
    already = Counter((edge.kind, edge.source, edge.target) for edge in told)
    nested = []
    for edge in _nested_edges(tree):
        key = (edge.kind, edge.source, edge.target)
        if already[key]:
            already[key] -= 1
        else:
            nested.append(edge)
    return sorted([*told, *nested], key=lambda edge: edge.time_ns)


def _told_edges(span: Span, tree: _SpanTree) -> Iterator[Edge]:
    for event in span.events:
        target = event.attributes.get(c.HANDOFF_TARGET)
        if event.name != c.HANDOFF_EVENT or not isinstance(target, str):
            continue
        source = event.attributes.get(c.HANDOFF_SOURCE)
        kind = event.attributes.get(c.HANDOFF_KIND)
        yield Edge(
            kind=next((known for known in EdgeKind if known == kind), EdgeKind.HANDOFF),
            source=source if isinstance(source, str) else tree.agent(span)[0],
            target=target,
            time_ns=event.time_ns,
        )


def _nested_edges(tree: _SpanTree) -> Iterator[Edge]:
    """An agent under a tool under another agent: the other one called it and goes on with what it returns.

    Who called is what the tool call says, which may be another agent than the one around it: some frameworks run tools
    in a step of their own.
    """
    for span in tree.spans:
        if _operation(span) != c.INVOKE_AGENT:
            continue
        tool = None
        for ancestor in tree.ancestors(span):
            operation = _operation(ancestor)
            if operation == c.EXECUTE_TOOL:
                tool = ancestor
            if operation == c.INVOKE_AGENT:
                source, target = tree.agent(tool or ancestor)[0], tree.agent(span)[0]
                if tool is not None and source != target:
                    yield Edge(EdgeKind.DELEGATION, source, target, span.start_ns)
                break


def message_text(message: Mapping[str, JSON]) -> str:
    """The text of one message, as OpenAI's APIs or the GenAI conventions write it; empty if it has none."""
    content = message.get("content")
    if content is None and message.get("type") == "function_call_output":
        content = message.get("output")  # the Responses API's form of a tool's message
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else message.get("parts")
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        return ""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") in ("text", "output_text", "input_text", None):
            text = part.get("text", part.get("content"))
            texts.append(text if isinstance(text, str) else "")
    return "".join(texts)


def _operation(span: Span) -> str | None:
    return _text(span, c.OPERATION)


def _text(span: Span, name: str) -> str | None:
    value = span.attributes.get(name)
    return value if isinstance(value, str) and value else None


def _whole(span: Span, name: str, missing: Any) -> Any:
    value = span.attributes.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else missing


def _messages(span: Span, name: str) -> tuple[Mapping[str, JSON], ...]:
    value = parsed(span.attributes.get(name))
    if isinstance(value, str) and value:
        value = [{"role": "user" if name == c.INPUT_MESSAGES else "assistant", "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    return tuple(one for one in value if isinstance(one, Mapping)) if isinstance(value, Sequence) else ()


def _integers(span: Span, name: str) -> tuple[int, ...] | None:
    values = parsed(span.attributes.get(name))
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    return tuple(values) if all(type(one) is int for one in values) else None


def _floats(span: Span, name: str) -> tuple[float, ...] | None:
    values = parsed(span.attributes.get(name))
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    return tuple(float(one) for one in values) if all(type(one) in (int, float) for one in values) else None


def _first(value: JSON) -> str | None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return value if isinstance(value, str) else None


def _shown(value: JSON) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _error(span: Span) -> str | None:
    if span.status is not SpanStatus.ERROR and _text(span, c.ERROR_TYPE) is None:
        return None
    return span.status_message or _text(span, c.ERROR_TYPE) or "error"
