"""``difference``: a role's reward is what the team would have lost without it.

    added to role i = −weight · G(without i)

G(without i) is the team's reward in the same rollout with role i's part left out or replaced by something neutral: a reward
named ``counterfactual`` that is bound to the role, from whoever can tell (the rollout function itself, where it can
compute it, or a replay). With weight 1 and ``credit.team`` 1 the role has G − G(without i).

Why: the team's reward moves with everything that every role did; what the others did is noise to role i. G(without i) has
most of that noise and nothing of what role i did, so that the difference is cleaner and still rises exactly when G does: for
role i, holding all others as they are, the order of its choices is the same.

Source: difference rewards, Wolpert and Tumer, *Optimal payoff functions for members of collectives* (2001).

Where we depart: what stands in for role i is whatever the counterfactual was made with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from coterie.episodes import Episode
from coterie.errors import RewardError
from coterie.interfaces import TurnReward
from coterie_trainers.credit import where
from coterie_trainers.shaping.bound import check_positive, for_roles


class Difference:
    """The team's reward less what it would have been without the role."""

    def __init__(
        self, weight: float = 1.0, counterfactual: str = "counterfactual", roles: Sequence[str] | None = None
    ) -> None:
        check_positive("difference", weight=weight)
        self._weight, self._counterfactual, self._roles = weight, counterfactual, roles

    def __call__(self, episode: Episode) -> list[TurnReward]:
        """What is taken from each role.

        Raises:
            RewardError: a role that acted has no counterfactual, or one that is no finite number.
        """
        by_role: dict[str, float] = defaultdict(float)
        for reward in episode.rewards:
            if reward.name == self._counterfactual and reward.role is not None:
                by_role[reward.role] += reward.value
        wanted = [role for role in episode.roles if self._roles is None or role in self._roles]
        for role in wanted:
            if role not in by_role:
                raise RewardError(
                    f"{where(episode)}: 'difference' needs to know what the team would have got without role {role!r}, "
                    f"and it has no reward named {self._counterfactual!r} for it. Give one with coterie.reward(value, "
                    f"name={self._counterfactual!r}, role={role!r}), or name the roles that have one."
                )
        return for_roles(episode, {role: -self._weight * by_role[role] for role in wanted})
