"""The SDK's runs that are under way: which agent acts in each, its tool calls, and the spans that stand for them.

A run is one ``Runner.run``: one agent acts at a time, until it hands control over. Agents that run inside it, as tools or
in guardrails, are runs of their own below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from opentelemetry.trace import Span

from coterie import structure
from coterie.capture.faults import note_fault
from coterie.episodes import EdgeKind
from coterie.roles import Identity, current_acting, role_of
from coterie.scope import AttemptScope, current_scope
from coterie.uncaptured import ToldCall
from coterie.vocabulary import new_id
from coterie_openai_sdk.uncaptured import record_failed_call

DEFAULT_WORKFLOW_NAME = "Agent workflow"
"""The SDK's own, for a run whose configuration names none."""


@dataclass(frozen=True, slots=True)
class Activation:
    """One agent's time in a run: from its start or from a hand-off to the next one or to the run's end."""

    identity: Identity
    span: Span


@dataclass(slots=True, eq=False)
class ToolUse:
    """One tool call under way."""

    identity: Identity
    """The agent that made it."""
    span: Span
    error: str | None = None
    """What the SDK noted as going wrong in it, though the model may get a text instead."""


@dataclass(slots=True, eq=False)
class Run:
    """One run under way."""

    activation: Activation
    """Who acts now."""
    around: Identity | None
    """The agent in whose name it was started."""
    outer: Span | None
    """What its agents' spans hang under."""
    workflow: Span | None
    """Its own span; None below another run."""
    config: Any = None
    """The user's ``RunConfig``, a mapping, or None."""
    call: ToldCall | None = None
    """The LLM call under way."""
    fresh: bool = True
    """True until its first agent has started."""
    id: str = field(default_factory=lambda: new_id("run"))
    _scope: AttemptScope | None = field(default_factory=current_scope)
    _tools: set[ToolUse] = field(default_factory=set)
    _ended: Lock = field(default_factory=Lock)

    @property
    def over(self) -> bool:
        """True once it has ended. A stream that its attempt left behind may still go on."""
        return self._ended.locked()

    def agent_starts(self, agent: str) -> None:
        """Note that an agent starts: the first one, or the one that was handed control."""
        if not self.fresh:
            self.activation.span.end()
            self.activation = _activate(agent, self.around, self.outer)
        self.fresh = False

    def acts(self, agent: str) -> Identity:
        """The identity of the agent that is about to do something, which is the acting one unless its start went unsaid."""
        if self.activation.identity.agent != agent:
            self.fresh = False
            self.agent_starts(agent)
        return self.activation.identity

    def hands_over(self, source: str, target: str) -> None:
        """Note a hand-off. The target acts from its start on: what runs in between is still the source's."""
        structure.add_edge(self.activation.span, EdgeKind.HANDOFF, source, target)

    def start_tool(self, name: str, agent: str, *, arguments: str | None, call_id: str | None) -> ToolUse:
        """Open a tool call of an agent."""
        identity = self.acts(agent)
        span = structure.start_tool(
            name, identity=identity, arguments=arguments, call_id=call_id, parent=self.activation.span
        )
        tool = ToolUse(identity, span)
        self._tools.add(tool)
        return tool

    def end_tool(self, tool: ToolUse, result: Any) -> None:
        """End a tool call with what the model gets of it."""
        if self.over:
            return
        self._tools.discard(tool)
        if tool.error is not None:
            structure.set_error(tool.span, tool.error, error_type="ToolError")
        structure.end_tool(tool.span, result)

    def end(self, error: BaseException | None = None) -> None:
        """End the run with the exception that left it, and all that is still open in it. Later calls do nothing."""
        if not self._ended.acquire(blocking=False):
            return
        try:
            if self._scope is not None:
                self._scope.close_call(self.id)
            if self.call is not None:
                record_failed_call(self.call, error)
            for tool in self._tools:
                structure.end(tool.span, tool.error or error, error_type="ToolError" if tool.error else None)
            structure.end(self.activation.span, error)
            if self.workflow is not None:
                structure.end(self.workflow, error)
        except Exception:  # noqa: BLE001 - whatever it is, the user's run goes on
            note_fault("The end of a run of the OpenAI Agents SDK could not be recorded")

    def abandoned(self) -> None:
        """End a run whose attempt ends before it: a stream that nobody reads to its end."""
        self.end()


def start_run(agent: Any, given: Any, config: Any, *, nested: bool) -> Run:
    """Take up a run in the present context.

    Args:
        agent: the agent that it starts with.
        given: its input; a ``RunState`` goes on with the agent that it stopped at.
        config: the user's ``RunConfig``, a mapping, or None.
        nested: True inside another run.
    """
    acting = current_acting()
    around = acting.identity if acting is not None else None
    first = getattr(given, "_current_agent", None) or agent
    workflow = None
    if not nested:
        workflow = structure.start_workflow(setting(config, "workflow_name") or DEFAULT_WORKFLOW_NAME, identity=around)
    outer = workflow if workflow is not None else acting.span if acting is not None else None
    run = Run(_activate(first.name, around, outer), around, outer, workflow, config)
    scope = current_scope()
    if scope is not None:
        scope.open_call(run.id, run.abandoned)
    return run


def setting(config: Any, name: str) -> Any:
    """A setting of a ``RunConfig``, which later versions take as a mapping too; None if it is not set."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _activate(agent: str, around: Identity | None, outer: Span | None) -> Activation:
    path = around.path if around is not None else ()
    if not path or path[-1] != agent:
        path = (*path, agent)
    identity = Identity(agent=agent, role=role_of(agent), path=path)
    return Activation(identity, structure.start_agent(identity, parent=outer))
