"""Who acts in the running code: which run it belongs to, and which tool call in it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from coterie.roles import Acting
from coterie_openai_sdk.runs import Run, ToolUse


@dataclass(frozen=True, slots=True)
class Place:
    """Where the running code is. The agent is not part of it: a run has one at a time, and changes it by hand-offs."""

    run: Run
    tool: ToolUse | None = None
    """The tool call that it is made for."""


place: ContextVar[Place | None] = ContextVar("coterie_openai_sdk_place", default=None)


def acting_in_running_code() -> Acting | None:
    """Who acts, for code in tools, guardrails and hooks: calls that it makes, agents that it runs."""
    current = place.get()
    if current is None:
        return None
    tool, activation = current.tool, current.run.activation
    return Acting(tool.identity, tool.span) if tool is not None else Acting(activation.identity, activation.span)
