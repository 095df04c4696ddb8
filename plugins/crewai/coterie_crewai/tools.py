"""Tool calls of CrewAI's agents, from the events that every way to call a tool emits around it."""

from __future__ import annotations

import json
from typing import Any

from coterie.structure import end, end_tool, set_error, start_tool
from coterie_crewai.identity import (
    Activity,
    ActivityKind,
    _activity,
    current_activity,
    current_agent,
    span_around,
    speaker,
)


def tool_started(_: Any, event: Any) -> None:
    """A tool is called: what happens in this context from now on happens in it."""
    around, agent, identity = current_activity(), current_agent(), speaker(event.agent_role)
    span = start_tool(
        event.tool_name,
        identity=identity,
        arguments=event.tool_args,
        call_id=_call_id(agent, event.tool_name, event.tool_args),
        parent=span_around(),
    )
    tool = Activity(ActivityKind.TOOL, identity, span, around)
    if agent is not None:
        with agent.lock:
            agent.tools[id(tool)] = tool
    _activity.set(tool)


def tool_finished(_: Any, event: Any) -> None:
    """The tool gave a result, which may say that it failed."""
    tool = _ended_tool()
    if tool is None:
        return
    failure = getattr(event, "failure", None)
    if failure is not None:
        set_error(tool.span, str(getattr(failure, "message", failure)), error_type="ToolFailure")
    end_tool(tool.span, event.output)


def tool_failed(_: Any, event: Any) -> None:
    """The tool raised."""
    tool = _ended_tool()
    if tool is not None:
        error = event.error if isinstance(event.error, BaseException) else str(event.error)
        end(tool.span, error, error_type=None if isinstance(error, BaseException) else "ToolError")


def _ended_tool() -> Activity | None:
    """The tool call that ends now: the innermost in this context. Another agent's is none of it."""
    tool = current_activity()
    if tool is None or tool.kind is not ActivityKind.TOOL:
        return None
    tool.ended = True
    _activity.set(tool.parent)
    agent = current_agent()
    if agent is not None:
        with agent.lock:
            agent.tools.pop(id(tool), None)
    return tool


def _call_id(agent: Activity | None, name: str, arguments: Any) -> str | None:
    """The model's id of a call: CrewAI's events have none, so it is looked up in the answer that asked for it."""
    if agent is None:
        return None
    given = as_arguments(arguments)
    with agent.lock:
        for at, (asked_name, asked_arguments, call_id) in enumerate(agent.asked):
            if asked_name == name and asked_arguments == given:
                del agent.asked[at]
                return call_id
    return None


def as_arguments(value: Any) -> Any:
    """Arguments as a mapping, however they came."""
    if not isinstance(value, str):
        return value or {}
    try:
        return json.loads(value)
    except ValueError:
        return value
