"""``transition``: every call is a sample of its own, all calls of a task in one group.

    key = task      advantage of a call = (its reward − mean_task) / std_task

mean and std over the task's *calls*.

Why it is here: for comparison. It is what systems do that copy one reward to every call and group the calls.

Source: LightningRL (arXiv 2508.03680), as published.

What is wrong with it: a rollout of ten calls weighs ten times one of a single call in mean and std. Rollouts that
wander are longer and mostly lost, so the baseline falls towards them, and the advantages of a task no longer cancel over
what was sampled, its rollouts. ``rollout`` corrects that.

Degrades to: ``rollout`` where all rollouts of a task make the same number of calls.

Where we depart: a lone call, and a group without spread, give exactly 0 (see ``grouping.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import rewards, standardised


def transition(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages relative to all calls of the same task, each counting once: ``advantages_N``."""
    return standardised(rewards(samples), [sample.task_id for sample in samples], range(len(samples)))
