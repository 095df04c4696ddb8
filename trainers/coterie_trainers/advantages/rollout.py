"""``rollout``: GRPO over the rollouts of a task.

    key = task      advantage of a turn = (its reward − mean_task) / std_task

mean and std over the task's *rollouts*: one number each, however many calls they made (see ``grouping.py``).

Why this baseline: the rollout is what is sampled, several times from the same start, so that its siblings' mean estimates
what the team gets on this task, and does not depend on what this rollout did.

Sources: GRPO (arXiv 2402.03300, section 4.1) for the group's mean and standard deviation; LightningRL (arXiv 2508.03680)
for giving the reward of a rollout to each of its calls.

Where we depart: as published, LightningRL puts all calls of a task in one group, so that a rollout of ten calls weighs ten
times one of a single call in mean and std. Here each weighs one; ``batches.py`` does the same for the loss.

Degrades to: plain GRPO with one call a rollout; 0 for a task with a single rollout, and where all rollouts got the same.
When roles are rewarded on different scales the roles share one baseline here and one role's scale drowns the other's: use
``role`` then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import standardise


def rollout(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages relative to the rollouts of the same task, all roles together: ``advantages_N``."""
    return standardise(samples, [sample.task_id for sample in samples])
