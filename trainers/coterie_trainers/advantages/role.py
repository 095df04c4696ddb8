"""``role``: each role is compared with itself in the other rollouts of the task.

    key = (task, role)      advantage of a turn = (its reward − mean_task,role) / std_task,role

mean and std over the rollouts in which the role made a call: one number for each (rollout, role), the mean of the
role's turns (see ``grouping.py``).

Why this baseline: roles are rewarded differently and act in different rollouts (a reviewer that is only called when
something went wrong). Against a mean that all roles share, one role's advantages are shifted and on another scale, which
shows as spikes of the gradient's norm. Its own mean and std take both away.

Source: Dr. MAS (arXiv 2602.08847), agent-wise normalisation.

Where we depart: Dr. MAS takes the statistics of a role over its *steps*. Then a role that was called nine times in a failed
rollout and once in a good one has a baseline near failure. The number of calls is the team's doing, not a further
sample of the task; so a role's repeated turns in one rollout share one vote here, and ``batches.py`` weighs the loss alike.

Degrades to: ``rollout`` for a team of one role, or when all roles act in every rollout and share its reward; 0 for a role
that acted in only one rollout of the task, and where all of its rollouts got the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import standardise


def role(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages relative to the same role in the other rollouts of the same task: ``advantages_N``."""
    return standardise(samples, [(sample.task_id, sample.role) for sample in samples])
