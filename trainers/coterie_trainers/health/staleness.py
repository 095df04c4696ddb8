"""Staleness: how many versions behind the trainer the policy was that gave a role's answers.

0 where every rollout of a step was sampled by the weights that the step starts with. Rollouts that carry over from earlier
steps, or a server that misses an update, make it grow. prime-rl calls it the off-policy level and discards rollouts beyond
``max_off_policy_steps``, 8 by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie_trainers.credit import CreditedTurn


def staleness_by_role(turns: Sequence[CreditedTurn], versions: Mapping[str, int]) -> Mapping[str, float]:
    """Role → the mean number of versions that its answers are old. Roles whose calls tell no version have none.

    Args:
        turns: The turns of one step.
        versions: Policy → the version of the weights that are about to be trained.
    """
    ages: dict[str, list[int]] = {}
    for turn in (each.turn for each in turns):
        if turn.policy is not None and turn.policy in versions and turn.policy_version is not None:
            ages.setdefault(turn.role, []).append(versions[turn.policy] - turn.policy_version)
    return {role: sum(values) / len(values) for role, values in ages.items()}
