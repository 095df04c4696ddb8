"""``role_turn``: each role is compared with itself at the same turn of the task's other rollouts.

    key = (task, role, turn)      advantage of a turn = (its reward − mean) / std

The reward is the mix of the team's and the local one that ``credit`` sets: ``team · R + local · r``.

Why this baseline: the third call of a role is made in another situation than its first, since it has seen what came
of them. Compared with all of the role's calls it is judged for where it stands; compared with other third calls, for what
it did. In exchange groups are smaller, and late turns, which few rollouts reach, have few or none to compare with.

Source: AT-GRPO (arXiv 2510.11062), agent- and turn-wise grouping, and its reward mix.

Where we depart: AT-GRPO samples a tree, several candidates from the very same prompt at each turn. Here the turns come
from rollouts that were sampled whole, so turns of one number share the task and the role, and only the first share the
prompt. A role's turn numbers count over the whole rollout.

Degrades to: ``role`` where each role makes one call a rollout; 0 for a turn that only one rollout reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import standardise


def role_turn(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages relative to the same turn of the same role in the task's other rollouts: ``advantages_N``."""
    return standardise(samples, [(sample.task_id, sample.role, sample.turn) for sample in samples])
