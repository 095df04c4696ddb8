"""``nested``: a manager is compared over rollouts, a worker over all its runs of the task.

    key = (task, role)      advantage of a turn = (its reward − mean_task,role) / std_task,role

What is compared, and counts in mean and std, depends on where the turn stands in the hierarchy, which its agent path tells:

- at the top (``manager``): the rollout. All of the role's turns there are one unit.
- below (``manager/worker``): the invocation, one run of the worker from its caller's request to its answer. A rollout that
  calls its worker five times has five units, and each weighs 1/5, so that every rollout counts the same.

A worker whose trace does not tell invocations apart has one for each agent path and rollout.

Why this baseline: a manager acts once a rollout, so that the task's rollouts are its siblings. A worker is sampled again
each time it is called, and its runs within *one* rollout are siblings too: one that did its part can stand out from one that
did not, where each has a reward of its own. Averaged by turns instead, as in ``role``, a run that wandered over many
turns outvotes the short ones beside it.

Source: M-GRPO (arXiv 2511.13288), group-relative advantages of main agent and sub-agents, and trajectory alignment.

Where we depart: rollouts call workers a different number of times, and the paper aligns them to a fixed number D by drawing:
sub-trajectories of a rollout with fewer are duplicated at random, those of a rollout with more are dropped at random. On
average over the draw each of a rollout's d runs then counts D/d times. Weights 1/d are exactly that average without
the noise: nothing is dropped and D, which cancels, need not be chosen. (``batches.py`` weighs the loss by rollout alike.)
The standard deviation is the unbiased one under these weights (see ``grouping.py``). And there may be any number of levels
and roles: each worker role has its own group.

Degrades to: ``role`` with one invocation a rollout; 0 for a worker that ran once in all rollouts of the task, and for a
manager of a lone rollout.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import rewards, standardised


def nested(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages relative to rollouts at the top of the hierarchy, to invocations below: ``advantages_N``."""
    keys = [(sample.task_id, sample.role) for sample in samples]
    rollouts = [sample.rollout_id for sample in samples]
    return standardised(rewards(samples), keys, [_unit(sample) for sample in samples], rollouts)


def _unit(sample: Sample) -> Hashable:
    if "/" not in sample.agent_path:
        return (sample.rollout_id,)
    return sample.rollout_id, sample.invocation or sample.agent_path
