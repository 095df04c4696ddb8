"""The attempt that the running code belongs to: its ids, the resources pinned to it, and where its spans go.

The runner enters an ``AttemptScope``; capture and the plugins read it. Like the identity it is a ContextVar, so that
hundreds of attempts may run side by side in one process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import RLock
from typing import Protocol

from coterie.prompts.versions import PromptVersion, RolePrompts, by_role
from coterie.replays import Replaying
from coterie.vocabulary import JSON, Endpoint, Mode, Reward, Span


class SpanSink(Protocol):
    """Takes finished spans and rewards; must not block and must be safe to call from any thread, even in the middle of
    itself: a thrown-away stream ends its span from within a garbage collection. So lock with an ``RLock``.
    """

    def add_span(self, span: Span) -> None:
        """Take a finished span."""
        ...

    def add_reward(self, reward: Reward) -> None:
        """Take a reward."""
        ...


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
    prompts: Sequence[PromptVersion] = ()
    """The pinned prompts."""
    handed_out: set[str] = field(default_factory=set)
    """Names of the prompts that the program asked for: it sends them itself, perhaps within a longer text."""
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    agents: Mapping[str, str] = field(default_factory=dict)
    """Agent name to role, where its run says so."""
    replay: Replaying | None = None
    """The earlier attempt that this one plays again."""
    calls: list[CallSummary] = field(default_factory=list)
    _turns: Counter[str] = field(default_factory=Counter)
    _open_calls: dict[str, Callable[[], None]] = field(default_factory=dict)
    _lock: RLock = field(default_factory=RLock)
    _by_role: Mapping[str, RolePrompts] = field(init=False)

    def __post_init__(self) -> None:
        self._by_role = by_role(self.prompts)

    def endpoint_for(self, role: str) -> Endpoint | None:
        """The endpoint that serves a role: one that names it, else one for all roles, else None (call as the user wrote)."""
        for endpoint in self.endpoints.values():
            if role in endpoint.roles:
                return endpoint
        return next((endpoint for endpoint in self.endpoints.values() if not endpoint.roles), None)

    def prompts_of(self, role: str) -> RolePrompts | None:
        """The pinned prompts of a role; None if it has none."""
        return self._by_role.get(role)

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

    def open_call(self, call_id: str, end: Callable[[], None]) -> None:
        """Note a call that is under way, and what ends it. A second note replaces the first."""
        self._open_calls[call_id] = end

    def close_call(self, call_id: str) -> None:
        """Note that a call has ended."""
        self._open_calls.pop(call_id, None)

    def end_open_calls(self) -> None:
        """End the calls that are still under way, with what has come of their answers: streams left half-read, requests
        that hang. For the runner, before it takes the attempt's last spans.
        """
        for end in list(self._open_calls.values()):
            end()


_scope: ContextVar[AttemptScope | None] = ContextVar("coterie_scope", default=None)
_process_scope: AttemptScope | None = None


def current_scope() -> AttemptScope | None:
    """The attempt that the running code belongs to, or None outside any."""
    return _scope.get() or _process_scope


def set_process_scope(scope: AttemptScope | None) -> None:
    """Make an attempt that of all code of this process, in every thread, that belongs to no other."""
    global _process_scope
    _process_scope = scope


@contextmanager
def attempt_scope(scope: AttemptScope) -> Iterator[AttemptScope]:
    """Make ``scope`` the current attempt within the block."""
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)
