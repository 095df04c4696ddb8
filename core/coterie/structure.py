"""Spans of a team's structure: workflows, agents, tool calls, and the edges between agents.

What a plugin reports who did what with. LLM calls are capture's; ``uncaptured.py`` has those that it cannot see.
"""

from __future__ import annotations

import json
from typing import Any

from opentelemetry.trace import Span, Status, StatusCode

from coterie import conventions as names
from coterie.capture.content import content_rules
from coterie.episodes import EdgeKind
from coterie.roles import Identity, current_acting
from coterie.spans import start_span
from coterie.vocabulary import JSON

ERROR_MESSAGE_LIMIT = 2000
"""Characters of an error's message that a span keeps."""


def start_workflow(
    name: str, *, identity: Identity | None = None, parent: Span | None = None, start_ns: int | None = None
) -> Span:
    """Open the span of one run of a team or graph. ``identity`` is the agent that runs it, if one does."""
    attributes: dict[str, JSON] = {names.OPERATION: names.INVOKE_WORKFLOW, names.WORKFLOW_NAME: name}
    if identity is not None:
        attributes |= agent_attributes(identity)
    return _start(f"invoke_workflow {name}", attributes, parent, start_ns)


def start_agent(identity: Identity, *, parent: Span | None = None, start_ns: int | None = None) -> Span:
    """Open the span of one activation of an agent."""
    attributes = {names.OPERATION: names.INVOKE_AGENT, **agent_attributes(identity)}
    return _start(f"invoke_agent {identity.agent}", attributes, parent, start_ns)


def start_tool(
    name: str,
    *,
    identity: Identity | None,
    arguments: JSON = None,
    call_id: str | None = None,
    parent: Span | None = None,
    start_ns: int | None = None,
) -> Span:
    """Open the span of one tool call.

    Args:
        name: the tool's name as the model knows it.
        identity: the agent that calls it.
        arguments: a mapping, or JSON text; masked or left out as the user said.
        call_id: the model's id of the call.
        parent: what it hangs under; None means the acting agent's span, else the current one.
        start_ns: nanoseconds since the epoch, if it started earlier.
    """
    attributes: dict[str, JSON] = {names.OPERATION: names.EXECUTE_TOOL, names.TOOL_NAME: name}
    if identity is not None:
        attributes |= agent_attributes(identity)
    if call_id:
        attributes[names.TOOL_CALL_ID] = call_id
    rules = content_rules()
    if rules.capture_content and arguments is not None:
        attributes[names.TOOL_ARGUMENTS] = (
            rules.text(arguments) if isinstance(arguments, str) else rules.arguments_text(arguments)
        )
    return _start(f"execute_tool {name}", attributes, parent, start_ns)


def end_tool(span: Span, result: Any, *, end_ns: int | None = None) -> None:
    """End a tool call's span with what the tool returned: a text, or a value that is written as JSON."""
    rules = content_rules()
    if rules.capture_content and result is not None:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        span.set_attribute(names.TOOL_RESULT, rules.text(text))
    end(span, end_ns=end_ns)


def end(
    span: Span, error: BaseException | str | None = None, *, error_type: str | None = None, end_ns: int | None = None
) -> None:
    """End a span, with the error that ended what it stands for: the exception, or its text and ``error_type``."""
    if error is not None:
        set_error(span, error, error_type=error_type)
    span.end(end_ns)


def set_error(span: Span, error: BaseException | str, *, error_type: str | None = None) -> None:
    """Say that what a span stands for failed, though something came of it: a tool whose error the model gets as a text."""
    kind = error_type or (type(error).__name__ if isinstance(error, BaseException) else "Error")
    rules = content_rules()
    text = f"{kind}: {error}" if isinstance(error, BaseException) else error
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, rules.text(text[:ERROR_MESSAGE_LIMIT]) if rules.capture_content else ""))


def add_edge(span: Span, kind: EdgeKind, source: str, target: str, *, time_ns: int | None = None) -> None:
    """Write a delegation, hand-off or message on the span of the agent that it comes from (or, of a message, reaches),
    or on the span of the workflow that moved control.

    Args:
        span: one that has not ended.
        kind: which of the three.
        source: agent name.
        target: agent name.
        time_ns: nanoseconds since the epoch, if it was earlier.
    """
    span.add_event(
        names.HANDOFF_EVENT,
        {names.HANDOFF_SOURCE: source, names.HANDOFF_TARGET: target, names.HANDOFF_KIND: kind.value},
        time_ns,
    )


def mark_tool_as_edge(span: Span, kind: EdgeKind, target: str | None = None) -> None:
    """Say of a tool call that it is a delegation or hand-off in itself, such as ``transfer_to_reviewer``.

    An edge is not made of it: ``add_edge`` does that. A tool call under which an agent runs need not be marked.
    """
    span.set_attribute(names.HANDOFF_KIND, kind.value)
    if target is not None:
        span.set_attribute(names.HANDOFF_TARGET, target)


def agent_attributes(identity: Identity) -> dict[str, JSON]:
    """What every agent, chat and tool span says about who acts."""
    return {
        names.AGENT_NAME: identity.agent,
        names.ROLE: identity.role,
        names.AGENT_PATH: identity.path_text,
    }


def _start(name: str, attributes: dict[str, JSON], parent: Span | None, start_ns: int | None = None) -> Span:
    if parent is None:
        acting = current_acting()
        parent = acting.span if acting is not None else None
    return start_span(name, attributes, parent=parent, start_ns=start_ns)
