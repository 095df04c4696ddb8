"""``state_history``: as ``state``, but turns are compared the more with each other the more of their past they share.

    A = A_episode + Σ_k w_k · A_k        w_k ∝ (k + 1)^α, over the k in which a turn has others to compare with
    A_k: standardised discounted return, key = (task, role, the last k states and the present one), k = 0 … HISTORY

Why this baseline: the same page means something else to an agent that has seen the answer before. Groups that share only
the present state are large and mix such histories (bias); groups that share the whole past are pure and small (variance).
The weighted sum lets a turn use all of them, the purer ones more.

Source: HGPO (arXiv 2602.22817), hierarchy-of-groups.

Where we depart: weights are normalised for each turn over the groups in which it has company, so that a turn whose
longest histories are its own alone is not left with less; the rest as in ``state``.

Degrades to: ``state`` with HISTORY = 0, and to ``role`` where no call names its state.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import standardise, standardised
from coterie_trainers.advantages.state import WEIGHT, discounted

HISTORY = 2
"""How many earlier states the purest groups share."""
ALPHA = 1.0
"""How much more purer groups count."""


def state_history(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Advantages within rollouts of the task and within visits of ever more of the same past: ``advantages_N``."""
    advantages_N = standardise(samples, [(sample.task_id, sample.role) for sample in samples])
    places = [place for place, sample in enumerate(samples) if sample.state_key is not None]
    if not places:
        return advantages_N
    return_M = discounted(samples)[places]
    histories = _history(samples)
    history_M = [histories[place] for place in places]
    total_M, weights_M = np.zeros(len(places)), np.zeros(len(places))
    for length in range(HISTORY + 1):
        keys = [
            (samples[place].task_id, samples[place].role, history[-length - 1 :])
            for place, history in zip(places, history_M, strict=True)
        ]
        visits = Counter(keys)
        # A past that is shorter than asked for is the one of the group before.
        counts_M = np.array([visits[key] > 1 and len(key[2]) == length + 1 for key in keys])
        weight = (length + 1.0) ** ALPHA
        total_M += np.where(counts_M, weight * standardised(return_M, keys, places), 0.0)
        weights_M += np.where(counts_M, weight, 0.0)
    advantages_N[places] += WEIGHT * np.where(weights_M > 0, total_M / np.maximum(weights_M, 1e-300), 0.0)
    return advantages_N


def _history(samples: Sequence[Sample]) -> list[tuple[str, ...]]:
    """The last states up to each turn's own, oldest first, those of its role in its rollout."""
    before: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
    histories: list[tuple[str, ...]] = [()] * len(samples)
    for place in sorted(range(len(samples)), key=lambda place: samples[place].step):
        sample = samples[place]
        if sample.state_key is not None:
            key = (sample.rollout_id, sample.role)
            before[key] = (*before[key], sample.state_key)[-HISTORY - 1 :]
            histories[place] = before[key]
    return histories
