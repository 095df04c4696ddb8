"""The attempt that the running code belongs to: its ids, the resources pinned to it, and where its spans go.

The runner enters an ``AttemptScope``; capture and the plugins read it. Like the identity it is a ContextVar, so that
hundreds of attempts may run side by side in one process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

from coterie.vocabulary import JSON, Endpoint, Mode, Reward, Span


class SpanSink(Protocol):
    """Takes finished spans and rewards; must not block and must be safe to call from any thread."""

    def add_span(self, span: Span) -> None: ...

    def add_reward(self, reward: Reward) -> None: ...


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """A role's prompt as pinned for this attempt."""

    name: str
    version: int
    text: str


@dataclass(frozen=True, slots=True)
class CallSummary:
    """One LLM call made so far in an attempt, as ``coterie.calls()`` gives it to reward code."""

    call_id: str
    role: str
    agent_path: str
    turn: int
    text: str
    """The text that the model answered."""


@dataclass(slots=True)
class AttemptScope:
    """Everything that code inside one attempt may need to know about it."""

    rollout_id: str
    attempt_id: str
    mode: Mode
    sink: SpanSink
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """Resource name to endpoint."""
    prompts: Mapping[str, PromptVersion] = field(default_factory=dict)
    """Role to prompt."""
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    calls: list[CallSummary] = field(default_factory=list)
    _turns: Counter[str] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def endpoint_for(self, role: str) -> Endpoint | None:
        """The endpoint that serves a role: one that names it, else one for all roles, else None (call as the user wrote)."""
        for endpoint in self.endpoints.values():
            if role in endpoint.roles:
                return endpoint
        return next((endpoint for endpoint in self.endpoints.values() if not endpoint.roles), None)

    def prompt_for(self, role: str) -> PromptVersion | None:
        """The pinned prompt of a role, or None."""
        return self.prompts.get(role)

    def next_turn(self, role: str) -> int:
        """Count one more call of a role; the first is 0."""
        with self._lock:
            turn = self._turns[role]
            self._turns[role] += 1
            return turn

    def add_call(self, call: CallSummary) -> None:
        """Remember a finished call."""
        with self._lock:
            self.calls.append(call)


_scope: ContextVar[AttemptScope | None] = ContextVar("coterie_scope", default=None)


def current_scope() -> AttemptScope | None:
    """The attempt that the running code belongs to, or None outside any."""
    return _scope.get()


@contextmanager
def attempt_scope(scope: AttemptScope) -> Iterator[AttemptScope]:
    """Make ``scope`` the current attempt within the block."""
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)
