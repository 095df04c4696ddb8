"""Advantages: how much better a turn did than what it is compared with. One method a file, pure NumPy.

    advantage = scale(reward − baseline(key(sample)))

Methods differ in the key, the baseline and the scale; each file says which and why. An estimator is any callable
``Sequence[Sample] → Sequence[float]`` (``coterie.interfaces.AdvantageEstimator``). Another package adds its own with an
entry point of the group ``coterie.advantages``::

    [project.entry-points."coterie.advantages"]
    mine = "my_package.credit:mine"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from coterie.errors import ConfigError
from coterie.interfaces import AdvantageEstimator, RememberingEstimator, Sample
from coterie.vocabulary import JSON
from coterie_trainers.offers import Offers

GROUP = "coterie.advantages"
"""The entry point group in which packages offer estimators."""

_OFFERS = Offers(
    "credit.advantage",
    "estimator",
    GROUP,
    {
        name: f"coterie_trainers.advantages.{name}:{function}"
        for name, function in {
            "rollout": "rollout",
            "transition": "transition",
            "role": "role",
            "role_turn": "role_turn",
            "nested": "nested",
            "loo": "loo",
            "ema_role": "EmaRole",
            "state": "state",
            "state_history": "state_history",
            "gae": "Gae",
            "turn_gae": "TurnGae",
        }.items()
    }
    | dict.fromkeys(
        ("counterfactual_mask", "counterfactual_replay"), "coterie_trainers.advantages.counterfactual:counterfactual"
    ),
)


def get(name: str, options: Mapping[str, JSON] | None = None) -> AdvantageEstimator:
    """The estimator of this name: a built-in one, or one that an installed package offers. A class gives a new object.

    Args:
        name: Its name.
        options: What the class is made with, such as ``{"trace": 0.9}`` for ``turn_gae``.

    Raises:
        ConfigError: there is none of this name (the message lists what there is), two packages offer it, it cannot
            be imported, or it does not take these options.
    """
    return cast(AdvantageEstimator, _OFFERS.get(name, options))


def names() -> list[str]:
    """The names that ``get`` knows, sorted."""
    return _OFFERS.names()


def check(by_role: str | Mapping[str, str], options: Mapping[str, Mapping[str, JSON]] | None = None) -> Estimate:
    """Resolve the estimators before any work is done; the result is called with the samples of each step.

    Args:
        by_role: One estimator's name for all, or role → name.
        options: Estimator's name → what it is made with.

    Raises:
        ConfigError: no such estimator, an empty mapping, or options that an estimator does not take or that are for one
            that nobody chose.
    """
    options = options or {}
    if not by_role:
        raise ConfigError("advantage: the mapping of roles to estimators is empty. Name one for each role.")
    chosen = [by_role] if isinstance(by_role, str) else list(dict.fromkeys(by_role.values()))
    if unused := sorted(set(options) - set(chosen)):
        raise ConfigError(f"credit.options: no role uses {unused[0]!r}. In use: {', '.join(sorted(chosen))}.")
    estimators = {name: get(name, options.get(name)) for name in chosen}
    by_token = [name for name, estimator in estimators.items() if _by_token(estimator)]
    if by_token and len(estimators) > 1:
        raise ConfigError(
            f"advantage: {by_token[0]!r} makes advantages by token, with a critic, and so must be the estimator of all "
            f"roles; the mapping has {', '.join(sorted(estimators))}."
        )
    return Estimate(by_role if isinstance(by_role, str) else dict(by_role), estimators)


def estimate(samples: Sequence[Sample], by_role: str | Mapping[str, str]) -> NDArray[np.float64]:
    """Advantages of samples, one estimator for all or one a role.

    Unlike the ``Estimate`` of ``check``, which serves many steps and lets a role be silent in one of them, this takes the
    samples for all there is: a mapping that names a role without a sample is an error.

    Args:
        samples: The turns of one step, all roles together.
        by_role: One estimator's name for all, or role → name.

    Returns:
        One advantage a sample, in order: ``advantages_N``.

    Raises:
        ConfigError: no such estimator; the mapping lacks a role or names one that has no sample; or an estimator
            gave a wrong number of values, or one that is not finite.
    """
    chosen = check(by_role)
    if samples and not isinstance(by_role, str):
        present = {sample.role for sample in samples}
        unknown = sorted(set(by_role) - present)
        if unknown:
            raise ConfigError(
                f"advantage: {_listed('role', unknown)} made no call. The roles that did: {', '.join(sorted(present))}."
            )
    return chosen(samples)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A checked choice of estimators: ``check`` makes it, a training step calls it."""

    by_role: str | Mapping[str, str]
    """One name for all roles, or role → name."""
    estimators: Mapping[str, AdvantageEstimator]
    """Name → estimator."""

    def __call__(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """One advantage a sample, in order: ``advantages_N``.

        Each estimator is called once, with the samples of all the roles that chose it. So a mapping that gives every
        role the same name is the same as that name alone, and a method may compare roles with each other.

        Raises:
            ConfigError: a role is missing from the mapping, or an estimator gave a wrong number of values or one that is
                not finite.
        """
        advantages_N = np.zeros(len(samples))
        for name, places in self._places_by_estimator(samples).items():
            advantages_N[places] = _call(name, self.estimators[name], [samples[place] for place in places])
        return advantages_N

    @property
    def needs_values(self) -> bool:
        """True when an estimator in use needs ``Sample.value``: a critic must be asked before it is called."""
        return any(getattr(estimator, "needs_values", False) for estimator in self.estimators.values())

    def needs_values_of(self, role: str) -> bool:
        """The same for the turns of one role."""
        name = self.by_role if isinstance(self.by_role, str) else self.by_role.get(role)
        return name is not None and bool(getattr(self.estimators[name], "needs_values", False))

    @property
    def token_level(self) -> bool:
        """True when what it gives are rewards of turns, of which the trainer makes advantages by token."""
        return any(map(_by_token, self.estimators.values()))

    def returns(self, samples: Sequence[Sample]) -> list[float | None]:
        """What a critic should have said at the beginning of each turn, in order; None where no estimator can tell."""
        returns_N: list[float | None] = [None] * len(samples)
        for name, places in self._places_by_estimator(samples).items():
            foretold = getattr(self.estimators[name], "returns", None)
            if foretold is not None:
                for place, value in zip(places, foretold([samples[place] for place in places]), strict=True):
                    returns_N[place] = float(value)
        return returns_N

    def remembered(self) -> dict[str, JSON]:
        """Name → what that estimator carries from step to step; empty when none carries anything."""
        return {
            name: dict(estimator.remembered())
            for name, estimator in self.estimators.items()
            if isinstance(estimator, RememberingEstimator)
        }

    def recall(self, remembered: Mapping[str, JSON]) -> None:
        """Go on from what ``remembered`` gave.

        Raises:
            ConfigError: an estimator cannot go on from it.
        """
        for name, estimator in self.estimators.items():
            if isinstance(estimator, RememberingEstimator) and name in remembered:
                estimator.recall(remembered[name])

    def _places_by_estimator(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        missing = set()
        for place, sample in enumerate(samples):
            name = self.by_role if isinstance(self.by_role, str) else self.by_role.get(sample.role)
            if name is None:
                missing.add(sample.role)
            else:
                places.setdefault(name, []).append(place)
        if missing:
            raise ConfigError(
                f"advantage: no estimator is named for {_listed('role', sorted(missing))}. "
                f"The mapping has: {', '.join(sorted(self.by_role))}. Add what is missing, or give one name for all."
            )
        return places


def _call(name: str, estimator: AdvantageEstimator, samples: Sequence[Sample]) -> NDArray[np.float64]:
    values_N = np.asarray(estimator(samples), dtype=np.float64)
    if values_N.shape != (len(samples),):
        raise ConfigError(
            f"advantage: {name!r} gave values of shape {values_N.shape} for {len(samples)} samples. "
            "It must give one number a sample, in order."
        )
    if not np.isfinite(values_N).all():
        place = int(np.flatnonzero(~np.isfinite(values_N))[0])
        raise ConfigError(
            f"advantage: {name!r} gave {values_N[place]} for role {samples[place].role!r} "
            f"of rollout {samples[place].rollout_id} (reward {samples[place].reward})."
        )
    return values_N


def _by_token(estimator: AdvantageEstimator) -> bool:
    return bool(getattr(estimator, "token_level", False))


def _listed(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
