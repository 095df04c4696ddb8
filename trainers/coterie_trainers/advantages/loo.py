"""``loo``: leave one out: each role is compared with the mean of the *other* rollouts, without a scale.

    key = (task, role)      advantage of a turn = its reward − mean over the other rollouts of the role's mean reward

Why this baseline: a mean that leaves out the rollout itself does not depend on its actions, so that the gradient's
expectation is the true one at any group size. A mean over all, divided by the standard deviation as in ``role``, is
smaller by (K − 1)/K and weighs tasks by 1/std besides: those that the team nearly always wins or loses count most. Here a
task counts by how much is at stake in it. In exchange rewards must be of like scale over tasks and roles.

Sources: RLOO (arXiv 2402.14740); for teams MAGRPO (arXiv 2508.04652), whose advantage has no scale either.

Where we depart: MAGRPO takes the team's return of a turn for all agents; here each role has its own group and the reward
that is bound to it.

Degrades to: 0 for a role that acted in only one rollout of the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import less_the_others, rewards


def loo(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Rewards less the mean of the same role in the task's other rollouts: ``advantages_N``."""
    keys = [(sample.task_id, sample.role) for sample in samples]
    return less_the_others(rewards(samples), keys, [sample.rollout_id for sample in samples])
