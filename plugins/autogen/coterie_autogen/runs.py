"""What is under way: runs of teams, activations of agents, tool calls. Each is a watch, and knows its span.

A team's agents get their messages from a runtime's tasks, whose context may be any: so a team's run is found by the
team's id, which is the key of each of its agents' ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span

from coterie.capture.content import content_rules
from coterie.conventions import TOOL_RESULT
from coterie.roles import Acting, Identity, acting_as
from coterie.scope import AttemptScope, attempt_scope, current_scope
from coterie.structure import end, end_tool, start_agent
from coterie_autogen.handoffs import add_delegation, add_handoff, add_messages


@dataclass(slots=True, eq=False)
class TeamRun:
    """One run of a team."""

    team_id: str
    around: Acting | None
    """Who runs the team, with its span: None for the outermost."""
    span: Span
    names: set[str]
    """The agents that may speak in it, those of teams around it and inside it included."""
    delegated_by: Activation | None = None
    """The agent whose own team it is, such as a society of mind, until an agent of it acts."""
    unheard: dict[str, None] = field(default_factory=dict)
    """Agents that have spoken since the manager last called a model."""
    scope: AttemptScope | None = field(default_factory=current_scope)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the run, but in no agent of it."""
        with _inside(self, self.around, self.scope):
            yield

    def saw(self, item: Any) -> None:
        """Messages of a team are seen at its agents."""

    def ended(self, error: BaseException | None) -> None:
        """The run is over."""
        if team_runs.get(self.team_id) is self:
            del team_runs[self.team_id]
        end(self.span, error)


@dataclass(slots=True, eq=False)
class Activation:
    """One activation of an agent, from the messages that it gets to its answer."""

    identity: Identity
    parent: Span | None
    """What its span hangs under; None means the current span."""
    agent: Any
    """The framework's object."""
    run: TeamRun | None = None
    heard: Iterable[str] = ()
    """The agents whose words newly reach it."""
    span: Span | None = None
    _answer: Any = None

    def open(self) -> Span:
        """Its span, started now if it has none yet: one that calls neither model nor tool may stay without."""
        if self.span is None:
            with _in_scope(self.run.scope if self.run is not None else None):
                self.span = start_agent(self.identity, parent=self.parent)
            add_messages(self.span, self.heard, self.identity.agent)
            if self.run is not None and self.run.delegated_by is not None:
                add_delegation(self.run.delegated_by.open(), self.run.delegated_by.identity.agent, self.identity.agent)
                self.run.delegated_by = None
            if self.run is not None and self.heard is self.run.unheard:
                self.run.unheard = {}
        return self.span

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While the agent acts."""
        around = self.span if self.span is not None else self.parent
        with _inside(self, Acting(self.identity, around), self.run.scope if self.run is not None else None):
            yield

    def saw(self, item: Any) -> None:
        """What the agent gives back: its answer may hand control over."""
        message = getattr(item, "chat_message", None)
        if message is None or message is self._answer:
            return
        self._answer = message
        add_handoff(self.open(), message, self.identity.agent)

    def ended(self, error: BaseException | None) -> None:
        """The agent has acted."""
        if error is not None:
            self.open()
        if self.span is not None:
            end(self.span, error)


@dataclass(slots=True, eq=False)
class Onlooker:
    """A call inside an activation that is under way: what comes back is looked at, and no more."""

    activation: Activation

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Nothing changes."""
        yield

    def saw(self, item: Any) -> None:
        """An answer of the agent's."""
        self.activation.saw(item)

    def ended(self, error: BaseException | None) -> None:
        """The activation ends by itself."""


@dataclass(slots=True, eq=False)
class ToolRun:
    """One tool call."""

    span: Span
    caller: Identity | None
    tool: Any = None
    """What runs, once it does: a further tool call in this context is another one."""
    result: str | None = None
    failed: bool = False
    """True when the result is the text of an error."""
    error: BaseException | None = None
    """What the tool raised, where the framework makes a result of it."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While the tool runs."""
        with _inside(self, Acting(self.caller, self.span) if self.caller is not None else None):
            yield

    def saw(self, item: Any) -> None:
        """Set by how the tool is called: see ``tools.py``."""

    def ended(self, error: BaseException | None) -> None:
        """The tool has returned or raised."""
        if error is None and not self.failed:
            end_tool(self.span, self.result)
            return
        rules = content_rules()
        if self.result is not None and rules.capture_content:
            self.span.set_attribute(TOOL_RESULT, rules.text(self.result))
        cause = error or self.error
        end(self.span, cause if cause is not None else self.result or "", error_type=None if cause else "ToolError")


Frame = TeamRun | Activation | ToolRun

team_runs: dict[str, TeamRun] = {}
"""Open runs of teams by the team's id."""

_frame: ContextVar[Frame | None] = ContextVar("coterie_autogen_frame", default=None)


def current_frame() -> Frame | None:
    """The innermost of what is under way in this context."""
    return _frame.get()


@contextmanager
def _inside(frame: Frame, acting: Acting | None, scope: AttemptScope | None = None) -> Iterator[None]:
    token = _frame.set(frame)
    try:
        with _in_scope(scope), acting_as(acting.identity, acting.span) if acting is not None else nullcontext():
            yield
    finally:
        _frame.reset(token)


def _in_scope(scope: AttemptScope | None) -> AbstractContextManager[object]:
    # A runtime that was started elsewhere has tasks that belong to no attempt or to another.
    return attempt_scope(scope) if scope is not None and scope is not current_scope() else nullcontext()
