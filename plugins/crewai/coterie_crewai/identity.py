"""Who acts: the crews, agents and tools that are at work in the present context.

CrewAI keeps no such thing that can be read at the moment of an LLM call: its events carry agents' roles, but reach
their handlers on pool threads, late. So every run, agent and tool is an ``Activity``, kept in a ContextVar that is set
where the work is done. Threads and tasks that CrewAI starts inherit it, since CrewAI copies the context for them.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Lock
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span

from coterie.capture.faults import note_fault
from coterie.roles import Acting, Identity, child_identity, current_acting, current_identity, role_of

if TYPE_CHECKING:
    from coterie_crewai.handoffs import Moves
    from coterie_crewai.uncaptured import OpenCall

UNNAMED_AGENT = "agent"
"""The name of who calls an LLM outside any agent."""


class ActivityKind(Enum):
    """What is at work."""

    WORKFLOW = auto()
    """A run of a crew or flow."""
    AGENT = auto()
    """An agent, at a task or kicked off alone."""
    TOOL = auto()
    """A tool call."""


@dataclass(slots=True, eq=False)
class Activity:
    """One run, agent or tool at work."""

    kind: ActivityKind
    identity: Identity | None
    """Who acts in it. None in a run that no agent started."""
    span: Span
    parent: Activity | None
    """What it happens in."""
    subject: Any = None
    """The framework's object: crew, flow or agent."""
    task: Any = None
    """Of an agent: the task that it works on, or None when it was kicked off alone."""
    moves: Moves | None = None
    """Of a crew's run: where control has been."""
    asked: list[tuple[str, Any, str]] = field(default_factory=list)
    """Of an agent: name, arguments and id of the tool calls that its last answer asked for."""
    tools: dict[int, Activity] = field(default_factory=dict)
    """Of an agent: its tool calls under way."""
    calls: dict[str, OpenCall] = field(default_factory=dict)
    """Of an agent: its LLM calls under way."""
    ended: bool = False
    lock: Lock = field(default_factory=Lock)


_activity: ContextVar[Activity | None] = ContextVar("coterie_crewai_activity", default=None)


def current_activity() -> Activity | None:
    """What is at work in the present context, innermost first. Tool calls that have ended are passed over.

    An agent that has ended counts still: where its time is up, CrewAI leaves its thread running, and calls in it are
    the agent's.
    """
    activity = _activity.get()
    while activity is not None and activity.ended and activity.kind is ActivityKind.TOOL:
        activity = activity.parent
    return activity


def current_agent() -> Activity | None:
    """The innermost agent at work in the present context."""
    activity = current_activity()
    while activity is not None and activity.kind is not ActivityKind.AGENT:
        activity = activity.parent
    return activity


def acting_in_running_code() -> Acting | None:
    """Who acts in the present context, for code in it that calls a model, with CrewAI or without."""
    try:
        activity = current_activity()
        if activity is None:
            return None
        identity = activity.identity or _flow_method(activity)
    except Exception:  # noqa: BLE001 - it is asked wherever an identity is needed, in the midst of the user's code
        note_fault("CrewAI's acting agent could not be found")
        return None
    return None if identity is None else Acting(identity, activity.span)


def agent_name(agent: Any) -> str:
    """The name of a CrewAI agent: its role, as written in YAML files with spaces and line ends around it."""
    return str(getattr(agent, "role", None) or "").strip() or UNNAMED_AGENT


def identity_around() -> Identity | None:
    """The agent in whose work something starts, or None. A flow's method is none: it only stands in for one."""
    identity, activity = current_identity(), current_activity()
    if activity is not None and activity.identity is None and identity == _flow_method(activity):
        return None
    return identity


def identity_of(agent: str) -> Identity:
    """The identity of an agent that takes up work in the present context."""
    around = identity_around()
    return child_identity(agent, around) if around is not None else _outermost(agent)


def speaker(role: str | None) -> Identity:
    """Who makes an LLM call or uses a tool: the acting agent, unless CrewAI says that it is another one.

    Args:
        role: the role of the agent that CrewAI names with the call, if it does.
    """
    name, acting, agent = (role or "").strip(), current_identity(), current_agent()
    known = not name or (agent is not None and name == agent_name(agent.subject))
    if acting is not None and (known or name == acting.agent):
        return acting
    return identity_of(name or UNNAMED_AGENT)


def span_around() -> Span | None:
    """What spans made in the present context hang under; None means the current OpenTelemetry span."""
    acting, activity = current_acting(), current_activity()
    if acting is not None and acting.span is not None:
        return acting.span
    return activity.span if activity is not None else None


def _outermost(agent: str) -> Identity:
    return Identity(agent=agent, role=role_of(agent), path=(agent,))


def _flow_method(activity: Activity) -> Identity | None:
    """A method of a flow speaks in its own name where no agent does."""
    if activity.kind is not ActivityKind.WORKFLOW or activity.moves is not None:
        return None
    from crewai.flow import flow_context

    variable = getattr(flow_context, "current_flow_method_name", None)
    name = variable.get() if variable is not None else None
    if not isinstance(name, str) or name in ("", "unknown"):
        return None
    return _outermost(name)
