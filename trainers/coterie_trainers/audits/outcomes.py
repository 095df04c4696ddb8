"""What a rollout came to: one number for the team."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.vocabulary import Reward
from coterie_trainers.evaluation import team_reward

SUCCESS = 1.0
"""The outcome from which on a rollout was won."""


def outcome(rewards: Sequence[Reward], name: str = "reward") -> float | None:
    """The sum of the rewards that are bound to the team; where a team gives none, of all that it gives. None without any."""
    counting = [reward for reward in rewards if reward.name == name]
    if not counting:
        return None
    if any(reward.role is None and reward.agent_path is None and reward.call_id is None for reward in counting):
        return team_reward(counting, name)
    return sum(reward.value for reward in counting)
