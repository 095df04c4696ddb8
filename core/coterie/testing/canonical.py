"""The canonical form of an episode: what is the same whichever framework the team is written in.

Ids, times, models, agents' names and the words of prompts differ from framework to framework; roles, turns, edges,
the team's own tools, rewards and the exactness of tokens do not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from coterie.episodes import Episode
from coterie.roles import role_of


@dataclass(frozen=True, slots=True, order=True)
class CanonicalTurn:
    """One LLM call."""

    role: str
    index: int
    """The how-many-eth call of this role."""
    path: str
    """The agent path, in roles."""
    text: str
    """What the model answered."""
    exact: bool
    """True when it came with token ids and one log-probability a response token."""


@dataclass(frozen=True, slots=True, order=True)
class CanonicalEdge:
    """A delegation, hand-off or message, between roles."""

    kind: str
    source: str
    target: str


@dataclass(frozen=True, slots=True, order=True)
class CanonicalToolCall:
    """A call of one of the team's own tools: those that are delegations or hand-offs in themselves are edges."""

    name: str
    path: str
    """The agent path of who called it, in roles."""
    arguments: str
    """JSON text with sorted keys."""
    result: str


@dataclass(frozen=True, slots=True, order=True)
class CanonicalReward:
    """A reward."""

    role: str
    """Empty for the team."""
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class CanonicalEpisode:
    """One attempt in canonical form. Turns are in order of time; the rest is sorted."""

    turns: tuple[CanonicalTurn, ...]
    edges: tuple[CanonicalEdge, ...] = ()
    tool_calls: tuple[CanonicalToolCall, ...] = ()
    rewards: tuple[CanonicalReward, ...] = ()


def canonical(episode: Episode) -> CanonicalEpisode:
    """The canonical form of an episode, under the role map in force."""
    return CanonicalEpisode(
        turns=tuple(
            CanonicalTurn(turn.role, turn.index, _in_roles(turn.agent_path), turn.text, turn.trainable)
            for turn in episode.turns
        ),
        edges=tuple(
            sorted(CanonicalEdge(edge.kind, role_of(edge.source), role_of(edge.target)) for edge in episode.edges)
        ),
        tool_calls=tuple(
            sorted(
                CanonicalToolCall(call.name, _in_roles(call.agent_path), _sorted_json(call.arguments), call.result)
                for call in episode.tool_calls
                if call.carries is None
            )
        ),
        rewards=tuple(
            sorted(CanonicalReward(reward.role or "", reward.name, reward.value) for reward in episode.rewards)
        ),
    )


def _in_roles(path: str) -> str:
    return "/".join(map(role_of, path.split("/")))


def _sorted_json(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text
