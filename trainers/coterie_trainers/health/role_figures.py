"""The health of each role at one step, from the turns it was trained on: names ``role/<role>/<figure>``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coterie_trainers.credit import CreditedTurn
from coterie_trainers.health.answers import answers_by_role
from coterie_trainers.health.diversity import diversity_by_role
from coterie_trainers.health.signal import signal_by_role
from coterie_trainers.health.staleness import staleness_by_role


def role_figures(
    turns: Sequence[CreditedTurn],
    advantages_N: NDArray[np.float64],
    versions: Mapping[str, int],
) -> dict[str, float]:
    """``reward, advantage_spread, zero_variance, length, error_rate, diversity, staleness, staleness_max`` of each role
    that made a call.

    What only the trainer sees (``entropy, mismatch_kl, clip_fraction`` of a role's rows) comes with the policy's update.

    Args:
        turns: N credited turns of a step.
        advantages_N: As estimated, one a turn.
        versions: Policy → the version of the weights that are about to be trained.
    """
    figures = {
        f"role/{role}/{name}": value
        for by_role in (
            signal_by_role(turns, advantages_N),
            answers_by_role(turns),
            staleness_by_role(turns, versions),
        )
        for role, values in by_role.items()
        for name, value in values.items()
    }
    return figures | {f"role/{role}/diversity": value for role, value in diversity_by_role(turns).items()}
