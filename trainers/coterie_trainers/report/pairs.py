"""Which episodes the report shows side by side, before and after training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coterie.episodes import Episode
from coterie.vocabulary import JSON, Task
from coterie_trainers.evaluation import team_reward

SHOWN = 3
"""Pairs that are shown."""


@dataclass(frozen=True, slots=True)
class ShownEpisode:
    """An episode as the report tells it."""

    won: bool
    reward: float
    turns: Sequence[tuple[str, str]]
    """Role and what it said."""


@dataclass(frozen=True, slots=True)
class EpisodePair:
    """One test task before and after."""

    title: str
    """``lost before, won after``."""
    task_id: str
    family: str | None
    input: str
    reference: str
    decoding: str
    before: ShownEpisode
    after: ShownEpisode


def choose_pairs(
    tasks: Mapping[str, Task], firsts: Mapping[tuple[str, str], Mapping[str, Episode]], *, success: float
) -> list[EpisodePair]:
    """Three pairs: one lost and then won, one lost both times, one won both times, as far as there are such.

    Greedy episodes where both sides have them, since they do not depend on chance; else the first sampled ones. What
    is missing is made up by a task that was won and then lost, if there is one, then by more of the first kinds.
    """
    for decoding in ("greedy", "sampled"):
        before, after = firsts.get(("before", decoding), {}), firsts.get(("after", decoding), {})
        both = sorted(before.keys() & after.keys() & tasks.keys())
        if both:
            pairs = [_pair(tasks[id_], decoding, before[id_], after[id_], success) for id_ in both]
            return _varied(pairs)
    return []


def _varied(pairs: Sequence[EpisodePair]) -> list[EpisodePair]:
    kinds = ((False, True), (False, False), (True, True), (True, False))
    by_kind = [[pair for pair in pairs if (pair.before.won, pair.after.won) == kind] for kind in kinds]
    chosen: list[EpisodePair] = []
    while len(chosen) < SHOWN and any(by_kind):
        for kind in by_kind:
            if kind and len(chosen) < SHOWN:
                # Another family than those shown already, if possible.
                shown = {pair.family for pair in chosen}
                pick = next((pair for pair in kind if pair.family not in shown), kind[0])
                kind.remove(pick)
                chosen.append(pick)
    return chosen


def _pair(task: Task, decoding: str, before: Episode, after: Episode, success: float) -> EpisodePair:
    told = [_told(before, success), _told(after, success)]
    was, is_ = ("won" if one.won else "lost" for one in told)
    return EpisodePair(
        title=f"{was} before, {is_} after" if was != is_ else f"{was} both times",
        task_id=task.id,
        family=None if task.metadata.get("family") is None else str(task.metadata["family"]),
        input=_as_text(task.input),
        reference=_as_text(task.reference),
        decoding=decoding,
        before=told[0],
        after=told[1],
    )


def _told(episode: Episode, success: float) -> ShownEpisode:
    reward = team_reward(episode.rewards)
    turns = [(turn.role, turn.error or turn.text) for turn in episode.turns]
    return ShownEpisode(won=reward >= success, reward=reward, turns=turns)


def _as_text(value: JSON) -> str:
    """Text as it is, an object as a line a key, anything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_as_text(inner)}" for key, inner in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)
