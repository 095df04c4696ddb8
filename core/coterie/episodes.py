"""Episodes: the role-aware view of one attempt, rebuilt from its spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from coterie.missing import Missing
from coterie.vocabulary import JSON, Reward


class EdgeKind(StrEnum):
    """How one agent came after another."""

    DELEGATION = "delegation"
    """Call and return: the caller goes on with the result."""
    HANDOFF = "handoff"
    """Control moves and does not come back by itself."""
    MESSAGE = "message"
    """One agent's words reach another."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A delegation, hand-off or message between two agents."""

    kind: EdgeKind
    source: str
    """Agent name."""
    target: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call by one agent."""

    name: str
    role: str
    agent_path: str
    call_id: str | None
    arguments: str
    result: str
    error: str | None
    start_ns: int
    end_ns: int
    carries: EdgeKind | None = None
    """The edge that it is in itself: an agent ran as this tool, or it handed control over."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One LLM call by one role."""

    call_id: str
    agent: str
    role: str
    agent_path: str
    index: int
    """The how-many-eth call of this role, from 0."""
    messages: Sequence[Mapping[str, JSON]]
    """What was really sent."""
    text: str
    """What came back, as text."""
    output: Sequence[Mapping[str, JSON]]
    """What came back, as messages (tool calls included)."""
    prompt_ids: tuple[int, ...] | None
    response_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    policy: str | None
    policy_version: int | None
    prompt_name: str | None
    prompt_version: int | None
    model: str | None
    finish_reason: str | None
    error: str | None
    start_ns: int
    end_ns: int
    state_key: str | None = None
    invocation: str | None = None
    """Names the run of its agent that the call belongs to: the span id of the nearest ``invoke_agent`` above it, or of one
    around that if the same agent's. None where no span tells."""
    prompt_parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """The prompts of the call's other parts, such as ``tool/search``: part → name and version."""
    answered_by: str | None = None
    """Who answered if no model did: ``recording`` or ``mask``, in a replay (``coterie.replays``)."""

    @property
    def trainable(self) -> bool:
        """True when prompt ids, response ids and one log-prob a response token are all there, sampled by this very call."""
        return bool(
            self.answered_by is None
            and self.prompt_ids
            and self.response_ids
            and self.logprobs is not None
            and len(self.logprobs) == len(self.response_ids)
        )


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt as the team lived it."""

    rollout_id: str
    attempt_id: str
    task_id: str
    turns: Sequence[Turn]
    """By start time."""
    edges: Sequence[Edge] = ()
    tool_calls: Sequence[ToolCall] = ()
    rewards: Sequence[Reward] = field(default=())
    missing: Sequence[Missing] = ()
    """What whoever recorded it did not write down, and how often."""
    diverged: str | None = None
    """How a replay departed from the attempt that it repeats; None if it kept to it, or is no replay."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that made a call, in order of their first."""
        return tuple(dict.fromkeys(turn.role for turn in self.turns))

    def tree(self) -> str:
        """The episode as text, a line a thing, agents by path. ``print(episode)`` shows it."""
        from coterie.episode_tree import tree

        return tree(self)

    def __str__(self) -> str:
        return self.tree()
