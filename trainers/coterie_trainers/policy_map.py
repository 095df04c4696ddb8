"""The policy map: which policy plays a role, which policies are trained, and which of these learn in a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from coterie.errors import ConfigError
from coterie_trainers.config import Policy, TrainConfig, Updates


class PolicyMap:
    """Roles → policies, as the configuration has them."""

    def __init__(self, config: TrainConfig) -> None:
        self._policies = config.policies
        self._updates = config.updates
        self._for_all = next((name for name, policy in config.policies.items() if not policy.roles), None)
        self._by_role = {role: name for name, policy in config.policies.items() for role in policy.roles}
        self.trained = tuple(name for name, policy in config.policies.items() if policy.trained)
        """The policies that are neither frozen nor hosted, in the configuration's order."""

    def plays(self, role: str) -> str:
        """The policy that plays a role.

        Raises:
            ConfigError: none does.
        """
        policy = self._for_all or self._by_role.get(role)
        if policy is None:
            raise ConfigError(
                f"policies: the role {role!r} made calls, and no policy plays it; the policies play "
                f"{', '.join(map(repr, sorted(self._by_role)))}. Add it to the roles of one of them. If it is not to "
                f"be trained, give it a policy with 'frozen: true', or 'hosted: {{base_url: …, model: …}}' for a model "
                f"behind a URL. If it is one of those roles under another name, say so in 'agents'."
            )
        return policy

    def trains(self, role: str) -> str | None:
        """The policy that learns from what a role did; None where that is frozen or hosted.

        Raises:
            ConfigError: no policy plays the role.
        """
        policy = self.plays(role)
        return policy if policy in self.trained else None

    def learns(self, step: int) -> frozenset[str]:
        """The policies that learn in a training step; the first is step 1."""
        return learning_policies(self._updates, self.trained, step)


class Silence:
    """Notices policies none of whose roles speaks."""

    def __init__(self, policy_map: PolicyMap, policies: Mapping[str, Policy], *, patience: int) -> None:
        """Nobody has spoken yet; after ``patience`` steps without a call of a policy that is trained, that is an error."""
        self._map = policy_map
        self._policies = policies
        self._patience = patience
        self._steps = 0
        self._silent = set(policies)

    def heard(self, roles: Collection[str]) -> list[str]:
        """Take in the roles that made calls in a step; gives warnings, all after the first such step.

        Raises:
            ConfigError: a role has no policy, or a trained policy has waited in vain for too long.
        """
        if not roles:
            return []
        self._steps += 1
        self._silent -= {self._map.plays(role) for role in roles}
        if self._steps >= self._patience:
            for name in sorted(self._silent.intersection(self._map.trained)):
                raise ConfigError(
                    f"{self._sentence(name, roles)} That is so since {self._steps} steps, so it learns nothing."
                )
        return [self._sentence(name, roles) for name in sorted(self._silent)] if self._steps == 1 else []

    def _sentence(self, name: str, roles: Collection[str]) -> str:
        wanted = ", ".join(map(repr, self._policies[name].roles))
        return (
            f"policies.{name}: none of its roles ({wanted}) made a call; the roles that did: "
            f"{', '.join(map(repr, sorted(roles)))}. Name these, or map agents to roles in 'agents'."
        )


def learning_policies(updates: Updates, trained: tuple[str, ...], step: int) -> frozenset[str]:
    """Those of the trained policies that learn in a step; the first is step 1."""
    if updates.order == "alternate":
        return frozenset({trained[(step - 1) // updates.steps_each % len(trained)]})
    if updates.order == "schedule":
        place = (step - 1) % sum(stage.steps for stage in updates.stages)
        for stage in updates.stages:
            if place < stage.steps:
                return frozenset(stage.policies)
            place -= stage.steps
    return frozenset(trained)


def with_schedule_lengths(config: TrainConfig) -> dict[str, Policy]:
    """The policies, each with the number of updates over which its learning rate falls."""
    trained = PolicyMap(config).trained
    steps = range(1, config.training.steps + 1)
    learns = [learning_policies(config.updates, trained, step) for step in steps]
    found = dict(config.policies)
    for name in trained:
        policy = config.policies[name]
        updates = policy.schedule.steps or max(1, sum(name in each for each in learns))
        found[name] = policy.model_copy(update={"schedule": policy.schedule.model_copy(update={"steps": updates})})
    return found
