"""``state``: a turn is compared with the role's other rollouts, and besides with other turns made in the same state.

    A = A_episode + ω · A_state
    A_episode: standardised reward, key = (task, role)
    A_state:   standardised discounted return, key = (task, role, state), every visit counting once
    discounted return of a turn = γ^(calls of its rollout that come after it) · its reward

Why this baseline: where an environment brings rollouts back to the same states (a page, a room, a failing test), turns made
there can be compared as if the state had been sampled several times, with no further rollouts. The discount makes an
earlier success from the same state worth more. ``coterie.state.key`` on a call's span names the state.

Source: GiGPO (arXiv 2505.10978), equations 6 to 9, with its ω = 1 and γ = 0.95.

Where we depart: roles have groups of their own; a turn without a state key has no A_state; visits without others to compare
with, and groups without spread, give exactly 0 (see ``grouping.py``). The paper discounts sums of step rewards; here a
turn's reward is what ``credit`` says counts for it, discounted by its distance to the end.

Degrades to: ``role`` where no call names its state, or no state is visited twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import rewards, standardise, standardised

WEIGHT = 1.0
"""ω: the weight of the comparison within a state."""
DISCOUNT = 0.95
"""γ: what a reward is worth a call earlier."""


def state(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages within rollouts of the task and within visits of the state: ``advantages_N``."""
    advantages_N = standardise(samples, [(sample.task_id, sample.role) for sample in samples])
    places = [place for place, sample in enumerate(samples) if sample.state_key is not None]
    keys = [(samples[place].task_id, samples[place].role, samples[place].state_key) for place in places]
    advantages_N[places] += WEIGHT * standardised(discounted(samples)[places], keys, places)
    return advantages_N


def discounted(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Each turn's reward, discounted by its distance to the last of these turns in its rollout: ``return_N``."""
    last: dict[str, int] = {}
    for sample in samples:
        last[sample.rollout_id] = max(last.get(sample.rollout_id, 0), sample.step)
    to_go_N = np.array([last[sample.rollout_id] - sample.step for sample in samples], dtype=np.float64)
    return np.asarray(rewards(samples) * DISCOUNT**to_go_N)
