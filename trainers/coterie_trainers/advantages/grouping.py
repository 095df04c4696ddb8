"""The shape that group-relative estimators share: standardise within a group in which each rollout counts once.

For the rollouts r of a group g, with m_r the mean reward of the turns that r has in g:

    mean_g = mean of m_r
    std_g  = sqrt( Σ_r (mean over the turns of r of (reward − mean_g)²) / (rollouts − 1) )
    advantage of a turn = (its reward − mean_g) / std_g

A rollout contributes one number, m_r, however many calls it made. Where all turns of a rollout carry the same reward, that
number is the reward, std_g the sample standard deviation, and this is plain GRPO. Where they carry different ones (rewards
bound to roles or calls), the baseline is what a rollout of this group gets on average, and each turn is measured with its
own reward: the advantages have mean zero when each rollout's turns share one vote. The scale counts the differences
within rollouts too: with those between rollouts alone, turns that differ much in rollouts that differ little would get
advantages without bound.

Two departures from common ports: a group of one rollout gives 0, because there is nothing to compare with (several ports
leave the raw reward there); and there is no epsilon under the fraction, so that advantages do not depend on the scale of
the reward. Instead a spread that is nothing but rounding counts as none, and a group without spread gives exactly 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample

ROUNDING = 1e-12
"""A standard deviation below this part of the group's largest absolute reward is rounding, not spread."""


def standardise(samples: Sequence[Sample], keys: Sequence[Hashable]) -> NDArray[np.float64]:
    """Advantages relative to each sample's group, in which a rollout counts once.

    Args:
        samples: N turns.
        keys: The group of each, N.

    Returns:
        ``advantages_N``; exactly 0 in groups of one rollout and in groups without spread.
    """
    return standardised(rewards(samples), keys, [sample.rollout_id for sample in samples])


def standardised(
    reward_N: NDArray[np.float64],
    keys: Sequence[Hashable],
    units: Sequence[Hashable],
    voters: Sequence[Hashable] | None = None,
) -> NDArray[np.float64]:
    """The same with values of one's own, and with what is compared named: ``units``, N, a rollout or anything else.

    Args:
        reward_N: N values.
        keys: The group of each, N.
        units: What each belongs to, N.
        voters: Whose vote each unit shares, N: a unit weighs 1 / (units of its voter in the group), and the deviation is
            the unbiased one for such weights, Σw·x² / (Σw − Σw²/Σw). Left out, each unit has a vote of its own, and that
            divisor is units − 1.

    Returns:
        ``advantages_N``; exactly 0 in groups of one unit and in groups without spread.
    """
    if not len(reward_N):
        return np.zeros(0)
    group_N, unit_N, group_U = _grouped(keys, units)
    vote_U = _votes(group_N, unit_N, voters)
    votes_G = np.bincount(group_U, weights=vote_U)
    mean_G = np.bincount(group_U, weights=vote_U * _mean_by(unit_N, reward_N)) / votes_G
    square_U = _mean_by(unit_N, (reward_N - mean_G[group_N]) ** 2)
    several_G = np.bincount(group_U) > 1
    freedom_G = votes_G - np.bincount(group_U, weights=vote_U**2) / votes_G
    std_G = np.sqrt(np.bincount(group_U, weights=vote_U * square_U) / np.where(several_G, freedom_G, 1.0))
    spread_G = several_G & (std_G > _rounding_by(group_N, reward_N))
    scale_G = np.where(spread_G, std_G, 1.0)
    return np.where(spread_G[group_N], (reward_N - mean_G[group_N]) / scale_G[group_N], 0.0)


def less_the_others(
    reward_N: NDArray[np.float64], keys: Sequence[Hashable], units: Sequence[Hashable]
) -> NDArray[np.float64]:
    """Each value less the mean over the *other* units of its group, a unit's own mean counting once.

    Returns:
        ``advantages_N``; exactly 0 in groups of one unit, and where the difference is nothing but rounding.
    """
    if not len(reward_N):
        return np.zeros(0)
    group_N, unit_N, group_U = _grouped(keys, units)
    reward_U = _mean_by(unit_N, reward_N)
    sum_G = np.bincount(group_U, weights=reward_U)
    others_N = np.bincount(group_U)[group_N] - 1
    difference_N = reward_N - (sum_G[group_N] - reward_U[unit_N]) / np.maximum(others_N, 1)
    spread_N = np.abs(difference_N) > _rounding_by(group_N, reward_N)[group_N]
    return np.where((others_N > 0) & spread_N, difference_N, 0.0)


def rewards(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """The rewards of N turns: ``reward_N``."""
    return np.array([sample.reward for sample in samples], dtype=np.float64)


def _grouped(
    keys: Sequence[Hashable], units: Sequence[Hashable]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The group of each value and its unit, which belongs to that group alone, ``group_N`` and ``unit_N``; and the group of
    each unit, ``group_U``.
    """
    group_N = _number(keys)
    unit_N = _number(list(zip(group_N, units, strict=True)))
    group_U = np.empty(unit_N.max() + 1, dtype=np.intp)
    group_U[unit_N] = group_N
    return group_N, unit_N, group_U


def _votes(
    group_N: NDArray[np.intp], unit_N: NDArray[np.intp], voters: Sequence[Hashable] | None
) -> NDArray[np.float64]:
    """The weight of each unit: ``vote_U``."""
    if voters is None:
        return np.ones(unit_N.max() + 1)
    voter_U = np.empty(unit_N.max() + 1, dtype=np.intp)
    voter_U[unit_N] = _number(list(zip(group_N, voters, strict=True)))
    return np.asarray(1.0 / np.bincount(voter_U)[voter_U])


def _number(keys: Sequence[Hashable]) -> NDArray[np.intp]:
    """The number of each key, distinct keys counted in order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)


def _mean_by(group_N: NDArray[np.intp], value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(group_N, weights=value_N) / np.bincount(group_N)


def _rounding_by(group_N: NDArray[np.intp], value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """What counts as rounding in each group: ``ROUNDING`` of its largest absolute value."""
    largest_G = np.zeros(group_N.max() + 1)
    np.maximum.at(largest_G, group_N, np.abs(value_N))
    return ROUNDING * largest_G
