"""Chains: the turns that one agent makes one after the other in a rollout, over which rewards add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from coterie.episodes import Turn


def chains(turns: Sequence[Turn]) -> list[list[int]]:
    """The places of an episode's turns by role and agent path, each chain in order of time."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, turn in enumerate(turns):
        places[turn.role, turn.agent_path].append(place)
    return list(places.values())


def ends(turns: Sequence[Turn]) -> frozenset[int]:
    """The places of the turns that end a chain: where a reward for the whole of it arrives."""
    return frozenset(places[-1] for places in chains(turns))
