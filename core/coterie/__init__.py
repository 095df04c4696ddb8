"""Coterie: a team of agents learns from its own traces."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie.agents import agent as agent
    from coterie.agents import handoff as handoff
    from coterie.agents import tool as tool
    from coterie.agents import workflow as workflow
    from coterie.capture import instrument as instrument
    from coterie.capture import uninstrument as uninstrument
    from coterie.connecting import connect as connect
    from coterie.errors import CoterieError as CoterieError
    from coterie.gateway_address import gateway_url as gateway_url
    from coterie.prompts.asking import prompt as prompt
    from coterie.recording import record as record
    from coterie.rewards import calls as calls
    from coterie.rewards import reward as reward
    from coterie.rollouts import rollout as rollout
    from coterie.states import state as state
    from coterie.vocabulary import Task as Task

_PUBLIC = {
    "instrument": ("coterie.capture", "instrument"),
    "uninstrument": ("coterie.capture", "uninstrument"),
    "connect": ("coterie.connecting", "connect"),
    "CoterieError": ("coterie.errors", "CoterieError"),
    "gateway_url": ("coterie.gateway_address", "gateway_url"),
    "prompt": ("coterie.prompts.asking", "prompt"),
    "record": ("coterie.recording", "record"),
    "calls": ("coterie.rewards", "calls"),
    "reward": ("coterie.rewards", "reward"),
    "agent": ("coterie.agents", "agent"),
    "handoff": ("coterie.agents", "handoff"),
    "tool": ("coterie.agents", "tool"),
    "workflow": ("coterie.agents", "workflow"),
    "rollout": ("coterie.rollouts", "rollout"),
    "state": ("coterie.states", "state"),
    "Task": ("coterie.vocabulary", "Task"),
}

__all__ = [
    "CoterieError",
    "Task",
    "agent",
    "calls",
    "connect",
    "gateway_url",
    "handoff",
    "instrument",
    "prompt",
    "record",
    "reward",
    "rollout",
    "state",
    "tool",
    "uninstrument",
    "workflow",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
