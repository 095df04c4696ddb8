"""``margin``: in a contest, a role's reward is by how much it beat the best of the others.

    added to role i = −weight · max over the other roles j of r_j

r_j are the rewards bound to roles. With weight 1 role i has r_i − max_j r_j.

Why: where roles play against each other (self-play, debate, attack and defence), what a role got says little without what
its opponents got: in an easy game all get much. For two roles with weight 1 it makes the game zero-sum.

What it may do wrong: for roles that should help each other it pays to hinder. Use it for opponents only; ``checking.py``
tells how often the order of returns changes.
"""

from __future__ import annotations

from collections import defaultdict

from coterie.episodes import Episode
from coterie.errors import RewardError
from coterie.interfaces import TurnReward
from coterie_trainers.credit import where
from coterie_trainers.shaping.bound import check_positive, for_roles


class Margin:
    """Rewards of roles less the best of the other roles'."""

    def __init__(self, weight: float = 1.0, reward: str = "reward") -> None:
        check_positive("margin", weight=weight)
        self._weight, self._reward = weight, reward

    def __call__(self, episode: Episode) -> list[TurnReward]:
        """What is taken from each role that has a reward.

        Raises:
            RewardError: fewer than two roles have a reward.
        """
        by_role: dict[str, float] = defaultdict(float)
        for reward in episode.rewards:
            if reward.name == self._reward and reward.role is not None and reward.call_id is None:
                by_role[reward.role] += reward.value
        if len(by_role) < 2:
            found = ", ".join(map(repr, by_role)) or "none"
            raise RewardError(
                f"{where(episode)}: 'margin' compares the {self._reward!r} of roles, and roles that have one are: {found}. "
                "Reward at least two roles, or leave 'margin' out of credit.shaping."
            )
        best_of_others = {role: max(value for other, value in by_role.items() if other != role) for role in by_role}
        return for_roles(episode, {role: -self._weight * best for role, best in best_of_others.items()})
