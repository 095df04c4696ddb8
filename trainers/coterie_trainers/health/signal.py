"""Signal: what a role has to learn from. Reward, spread of the advantages, and the share of groups that teach nothing.

Zero variance: all rewards of a group (a task and a role) are equal, so that a group-relative advantage is zero. A share near
1 means that tasks are too easy, too hard, or not judged at all (DAPO, arXiv 2503.14476, section 3.2, draws new tasks then).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coterie_trainers.credit import CreditedTurn


def signal_by_role(
    turns: Sequence[CreditedTurn], advantages_N: NDArray[np.float64]
) -> Mapping[str, Mapping[str, float]]:
    """Role → ``reward`` (mean over its turns), ``advantage_spread`` (standard deviation), ``zero_variance`` (share of groups)."""
    rewards: dict[str, list[float]] = {}
    advantages: dict[str, list[float]] = {}
    groups: dict[tuple[str, str], set[float]] = {}
    for each, advantage in zip(turns, advantages_N, strict=True):
        sample = each.sample
        rewards.setdefault(sample.role, []).append(sample.reward)
        advantages.setdefault(sample.role, []).append(float(advantage))
        groups.setdefault((sample.role, sample.task_id), set()).add(sample.reward)
    figures = {}
    for role, values in rewards.items():
        equal = [len(found) == 1 for (of, _), found in groups.items() if of == role]
        figures[role] = {
            "reward": float(np.mean(values)),
            "advantage_spread": float(np.std(advantages[role])),
            "zero_variance": sum(equal) / len(equal),
        }
    return figures
