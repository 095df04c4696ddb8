"""Runs of crews and flows, and agents at work in them: which calls of CrewAI's methods are what.

Their spans begin and end with the methods themselves, not with CrewAI's events: handlers of events run on pool threads
with copies of the context, so nothing that they set reaches the LLM call; and a run that is cancelled or runs out of
time sends no closing event. A method's end is always seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Token
from typing import Any

from coterie.capture.faults import note_fault
from coterie.structure import end, start_agent, start_workflow
from coterie.wrapping import derived_from
from coterie_crewai.custom_llms import wrap_custom_llms
from coterie_crewai.handoffs import Moves
from coterie_crewai.identity import (
    Activity,
    ActivityKind,
    _activity,
    agent_name,
    current_activity,
    current_agent,
    identity_around,
    identity_of,
    span_around,
)
from coterie_crewai.patches import patches


class Working:
    """Makes an activity the one at work, and ends its span with it."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._token: Token[Activity | None] | None = None

    def __enter__(self) -> Activity:
        self._token = _activity.set(self._activity)
        return self._activity

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._token is not None:
            with suppress(ValueError):  # Left in another context than entered, as generators may be: that one is gone.
                _activity.reset(self._token)
        try:
            _end(self._activity, error)
        except Exception:  # noqa: BLE001 - the user gets the result or CrewAI's own exception
            note_fault("The end of a CrewAI run could not be recorded")


def wrap_runs() -> None:
    """Wrap the methods in which crews, flows and agents do their work."""
    from crewai import Agent, Crew, Flow, Task

    patches.around(Crew, "kickoff", _begin_crew)
    patches.around_async(Crew, "akickoff", _begin_crew)
    for owner in Flow.__mro__:
        patches.around_async(owner, "kickoff_async", _begin_flow)
        patches.around_async(owner, "resume_async", _begin_flow)
    # All ways to execute a task lead through these two, and so do its guardrails and the conversion of its output.
    patches.around(Task, "_execute_core", _begin_task)
    patches.around_async(Task, "_aexecute_core", _begin_task)
    for kicked_off in (Agent, *_lite_agents()):
        patches.around(kicked_off, "kickoff", _begin_kickoff)
        patches.around_async(kicked_off, "kickoff_async", _begin_kickoff_async)
    wrap_new_classes()


def _lite_agents() -> list[type]:
    try:
        from crewai.lite_agent import LiteAgent
    except ImportError:  # It is deprecated, and may go.
        return []
    return [LiteAgent]


def wrap_new_classes() -> None:
    """Wrap the classes of agents and LLMs that came since: adapters, and the user's own."""
    from crewai.agents.agent_builder.base_agent import BaseAgent

    # A coworker is asked without a task's own method, and so is an agent by hand.
    for agent_class in (BaseAgent, *derived_from(BaseAgent)):
        patches.around(agent_class, "execute_task", _begin_agent)
        patches.around_async(agent_class, "aexecute_task", _begin_agent)
    wrap_custom_llms()


def _begin_crew(crew: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Working | None:
    if crew.stream or _restores(args, kwargs, 2):
        return None  # It calls itself again, or the crew that it restores.
    return _begin_workflow(crew, crew.name or "crew", Moves(crew.tasks))


def _begin_flow(flow: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Working | None:
    from crewai import Flow

    kind = type(flow)
    if kind is not Flow and kind.__module__.partition(".")[0] == "crewai":
        return None  # CrewAI's own machinery: its agents' executor is a flow, and so is its memory.
    if getattr(flow, "stream", False) or _restores(args, kwargs, 2):
        return None
    return _begin_workflow(flow, getattr(flow, "name", None) or kind.__name__, None)


def _begin_workflow(subject: Any, name: str, moves: Moves | None) -> Working:
    _notice_new_classes()
    identity = identity_around()
    span = start_workflow(name, identity=identity, parent=span_around())
    return Working(Activity(ActivityKind.WORKFLOW, identity, span, current_activity(), subject=subject, moves=moves))


def _begin_task(task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Working | None:
    agent = (args[0] if args else kwargs.get("agent")) or task.agent
    if agent is None:
        return None
    working = _begin_activity(agent, task)
    activity = working._activity
    around = activity.parent
    if around is not None and around.moves is not None:
        around.moves.starts(task, agent_name(agent), activity.span)
    return working


def _begin_agent(agent: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Working | None:
    task = args[0] if args else kwargs.get("task")
    around = current_agent()
    if around is not None and around.subject is agent and around.task is task:
        return None  # At work on it already: the task's own method, or another try.
    return _begin_activity(agent, task)


def _begin_kickoff(agent: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Working | None:
    if hasattr(agent, "execute_task") and _in_event_loop():
        return None  # It only gives the coroutine of the other way.
    return _begin_kickoff_async(agent, args, kwargs)


def _begin_kickoff_async(agent: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Working | None:
    agent = getattr(agent, "original_agent", None) or agent
    around = current_activity()
    if around is not None and around.subject is agent and around.task is None:
        return None  # One way to kick off calls another.
    if _restores(args, kwargs, 3):
        return None
    return _begin_activity(agent, None)


def _begin_activity(agent: Any, task: Any) -> Working:
    _notice_new_classes()
    identity = identity_of(agent_name(agent))
    span = start_agent(identity, parent=span_around())
    return Working(Activity(ActivityKind.AGENT, identity, span, current_activity(), subject=agent, task=task))


def _notice_new_classes() -> None:
    if current_activity() is None:
        wrap_new_classes()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _restores(args: Sequence[Any], kwargs: dict[str, Any], position: int) -> bool:
    """True if a kickoff only hands on to an object restored from a checkpoint."""
    checkpoint = args[position] if len(args) > position else kwargs.get("from_checkpoint")
    return getattr(checkpoint, "restore_from", None) is not None


def _end(activity: Activity, error: BaseException | None) -> None:
    activity.ended = True
    with activity.lock:
        tools, calls = list(activity.tools.values()), list(activity.calls.values())
        activity.tools.clear()
        activity.calls.clear()
    for call in calls:
        call.end_unanswered(error)
    for tool in reversed(tools):
        tool.ended = True
        end(tool.span, error)
    around = activity.parent
    if activity.kind is ActivityKind.AGENT and around is not None and around.moves is not None:
        around.moves.ends(activity.task, agent_name(activity.subject))
    end(activity.span, error)
