"""Valuing: what the critics say of the turns of a step, for estimators that want to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from coterie.errors import ConfigError
from coterie.interfaces import Backend
from coterie_trainers.advantages import Estimate
from coterie_trainers.batches import PolicyOf, value_rows
from coterie_trainers.config import Critic
from coterie_trainers.credit import CreditedTurn


def check_critic(critic: Critic | None, estimate: Estimate) -> None:
    """Refuse a critic that nobody asks, and an estimator that lacks one.

    Raises:
        ConfigError: one is there without the other.
    """
    wanted = estimate.needs_values or estimate.token_level
    if wanted and critic is None:
        raise ConfigError(
            f"credit.advantage: {estimate.by_role!r} needs a critic, and there is none. Add the section 'critic', such as "
            "critic: {learning_rate: 1e-5}, or choose an estimator that compares rollouts with each other."
        )
    if critic is not None and not wanted:
        raise ConfigError(
            f"critic: no estimator asks it; credit.advantage is {estimate.by_role!r}. Set credit.advantage to 'gae' or "
            "'turn_gae', or leave the critic out."
        )


async def valued(turns: Sequence[CreditedTurn], policy_of: PolicyOf, backend: Backend) -> list[CreditedTurn]:
    """The turns, with the critic's value in the sample of each that can be trained on.

    What arrives with a turn that has no value, such as the team's reward with a last call that failed, arrives with the
    turn of its chain before it that has one, so that no reward is lost with the turn.
    """
    found = list(turns)
    for policy, placed in value_rows(turns, policy_of).items():
        values = await backend.values(policy, [row for _, row in placed])
        for (place, _), row_values in zip(placed, values, strict=True):
            found[place] = replace(found[place], sample=replace(found[place].sample, value=row_values[0]))
    return _with_rewards_of_the_lost(found)


def _with_rewards_of_the_lost(turns: Sequence[CreditedTurn]) -> list[CreditedTurn]:
    found = list(turns)
    late: dict[tuple[str, str, str], float] = defaultdict(float)
    for place in sorted(range(len(turns)), key=lambda place: turns[place].sample.step, reverse=True):
        sample = turns[place].sample
        chain = sample.rollout_id, sample.role, sample.agent_path
        if sample.value is None:
            late[chain] += sample.step_reward or 0.0
        elif late.get(chain):
            kept = replace(sample, step_reward=(sample.step_reward or 0.0) + late.pop(chain))
            found[place] = replace(found[place], sample=kept)
    return found
