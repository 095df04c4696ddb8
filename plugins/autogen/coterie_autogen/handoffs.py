"""Edges between agents: hand-offs, delegations to a team of the agent's own, and messages in group chats."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from opentelemetry.trace import Span

from coterie.episodes import EdgeKind
from coterie.structure import add_edge


def add_handoff(span: Span, answer: Any, agent: str) -> None:
    """Write the hand-off, if an agent's answer is one. An answer of another agent that is only passed on is not."""
    target = _handoff_target(answer)
    if target is not None and answer.source == agent:
        add_edge(span, EdgeKind.HANDOFF, agent, target)


def add_delegation(span: Span, agent: str, target: str) -> None:
    """Write that an agent has a team of its own work for it, of which ``target`` is the first to act."""
    add_edge(span, EdgeKind.DELEGATION, agent, target)


def add_messages(span: Span, heard: Iterable[str], agent: str) -> None:
    """Write whose words newly reach an agent, on its own span."""
    for source in heard:
        if source != agent:
            add_edge(span, EdgeKind.MESSAGE, source, agent)


def speakers(messages: Sequence[Any], names: Collection[str]) -> dict[str, None]:
    """The agents among ``names`` that messages are from, in order."""
    sources = (getattr(message, "source", "") for message in messages)
    return dict.fromkeys(source for source in sources if source in names)


def heard_by(agent: str, messages: Sequence[Any], names: Collection[str]) -> dict[str, None]:
    """The agents whose words reach ``agent`` with ``messages``, without those that handed over to it: that is an edge."""
    heard = speakers(messages, names)
    for message in messages:
        if _handoff_target(message) == agent:
            heard.pop(message.source, None)
    return heard


def _handoff_target(message: Any) -> str | None:
    # A look at the class's name spares importing the framework, and takes in subclasses of the user's.
    if any(base.__name__ == "HandoffMessage" for base in type(message).__mro__):
        target: str = message.target
        return target
    return None
