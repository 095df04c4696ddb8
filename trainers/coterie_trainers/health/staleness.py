"""Staleness: how many versions behind the trainer the policy was that gave a role's answers.

0 where every rollout of a step was sampled by the weights that the step starts with. Rollouts that carry over from earlier
steps, or a server that misses an update, make it grow. prime-rl calls it the off-policy level and discards rollouts beyond
``max_off_policy_steps``, 8 by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie_trainers.credit import CreditedTurn


def staleness(turns: Sequence[CreditedTurn], versions: Mapping[str, int]) -> dict[str, float]:
    """``staleness``, the mean over turns, and ``staleness_max``; empty where no call tells its version.

    Args:
        turns: The turns of one step.
        versions: Policy → the version of the weights that are about to be trained.
    """
    return _figures([age for ages in _ages(turns, versions).values() for age in ages])


def staleness_by_role(turns: Sequence[CreditedTurn], versions: Mapping[str, int]) -> Mapping[str, Mapping[str, float]]:
    """Role → the same figures of its answers. Roles whose calls tell no version have none."""
    return {role: _figures(ages) for role, ages in _ages(turns, versions).items()}


def _ages(turns: Sequence[CreditedTurn], versions: Mapping[str, int]) -> dict[str, list[int]]:
    ages: dict[str, list[int]] = {}
    for turn in (each.turn for each in turns):
        if turn.policy is not None and turn.policy in versions and turn.policy_version is not None:
            ages.setdefault(turn.role, []).append(versions[turn.policy] - turn.policy_version)
    return ages


def _figures(ages: Sequence[int]) -> dict[str, float]:
    return {"staleness": sum(ages) / len(ages), "staleness_max": float(max(ages))} if ages else {}
