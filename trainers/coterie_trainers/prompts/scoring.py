"""Scoring: what a rollout was worth, to the team and to each role."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from coterie.episodes import Episode
from coterie.errors import RewardError
from coterie.vocabulary import Reward, RolloutState
from coterie_trainers.evaluation import team_reward
from coterie_trainers.prompts.config import RewardRange
from coterie_trainers.prompts.playing import Played


def score(played: Played, wanted: RewardRange) -> tuple[float, str | None]:
    """A rollout's score, and why it failed if it did.

    Raises:
        RewardError: it ended well without the reward that counts, or with one outside of its range.
    """
    rollout, (low, high) = played.rollout, wanted.range
    if rollout.state is not RolloutState.SUCCEEDED:
        return low, rollout.reason or f"it is {rollout.state}"
    rewards = played.episode.rewards
    if not any(_of_the_team(reward) and reward.name == wanted.name for reward in rewards):
        there = ", ".join(sorted({_told(reward) for reward in rewards})) or "none"
        raise RewardError(
            f"Rollout {rollout.id} has no reward {wanted.name!r} of the team; it has: {there}. Return a number, or a mapping "
            "with the key 'team'; or name the reward that counts in reward.name."
        )
    value = team_reward(rewards, wanted.name)
    if not (math.isfinite(value) and low <= value <= high):
        raise RewardError(
            f"Rollout {rollout.id} on task {rollout.task_id!r} has the reward {value:g}, outside of reward.range = "
            f"[{low:g}, {high:g}]. Mend the reward, or declare its range; the same command then goes on, and what was played "
            "is kept."
        )
    return value, None


def role_scores(episode: Episode) -> Mapping[str, float]:
    """Role → the sum of the rewards that are bound to it: by role, by agent path or by one of its calls."""
    by_call = {turn.call_id: turn.role for turn in episode.turns}
    by_path = {turn.agent_path: turn.role for turn in episode.turns}
    found: dict[str, float] = defaultdict(float)
    for reward in episode.rewards:
        role = by_call.get(reward.call_id or "") or by_path.get(reward.agent_path or "") or reward.role
        if role is not None and not _of_the_team(reward):
            found[role] += reward.value
    return dict(found)


def _of_the_team(reward: Reward) -> bool:
    return reward.role is None and reward.agent_path is None and reward.call_id is None


def _told(reward: Reward) -> str:
    whose = reward.call_id or reward.agent_path or reward.role
    return f"{reward.name!r}" if whose is None else f"{reward.name!r} of {whose}"
