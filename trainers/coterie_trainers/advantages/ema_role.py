"""``ema_role``: each role is compared with its own running mean over earlier steps.

    advantage of a turn = its reward − b_role      then      b_role ← α^n · b_role + (1 − α^n) · mean of the step

n is the number of the step's rollouts in which the role acted, and the mean is over them, a rollout counting once.
b is used with its bias corrected, b / (1 − α^N) after N rollouts, so that it is a mean from the first step on.

Why this baseline: it needs no second rollout of the same task. That makes it the one for self-play, where an opponent never
plays the same game twice, and for traces of production, where a user asks once. A step is scored *before* the baseline
takes it in, so that the baseline does not depend on what it judges.

Source: role-conditioned advantage estimation, SPIRAL (arXiv 2506.24119), with its α = 0.95.

Where we depart: the paper keeps a baseline for each (game, role), updated rollout by rollout from 0; here for each role,
updated once a step, so that the order of rollouts within it means nothing; and with the bias corrected, since
from 0 the first rewards would all be advantages. Whoever mixes tasks of unlike difficulty should group by task instead.

Degrades to: 0 in the first step in which a role acts: there is nothing to compare with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.errors import ConfigError
from coterie.interfaces import Sample
from coterie.vocabulary import JSON

DECAY = 0.95
"""α: what a baseline keeps of itself a rollout."""


class EmaRole:
    """Rewards less the running mean of the same role. It remembers from step to step."""

    def __init__(self, decay: float = DECAY) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"advantage: 'ema_role' has decay = {decay}; it must lie between 0 and 1.")
        self._decay = decay
        self._sums: dict[str, float] = {}
        """Role → b, not corrected."""
        self._rollouts: dict[str, int] = {}
        """Role → N."""

    def __call__(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Score the turns of a step, then take them in: ``advantages_N``."""
        advantages_N = np.array([self._advantage(sample) for sample in samples], dtype=np.float64)
        self._take_in(samples)
        return advantages_N

    def remembered(self) -> Mapping[str, JSON]:
        """Role → [b, N]."""
        return {role: [total, self._rollouts[role]] for role, total in self._sums.items()}

    def recall(self, remembered: Mapping[str, JSON]) -> None:
        """Go on from what ``remembered`` gave.

        Raises:
            ConfigError: it is something else.
        """
        try:
            pairs = {role: (float(total), int(count)) for role, (total, count) in remembered.items()}
        except (TypeError, ValueError):
            raise ConfigError(f"advantage: 'ema_role' cannot go on from {remembered!r}: not role → [b, N].") from None
        self._sums = {role: total for role, (total, _) in pairs.items()}
        self._rollouts = {role: count for role, (_, count) in pairs.items()}

    def _advantage(self, sample: Sample) -> float:
        count = self._rollouts.get(sample.role, 0)
        if count == 0:
            return 0.0
        return sample.reward - self._sums[sample.role] / (1.0 - self._decay**count)

    def _take_in(self, samples: Sequence[Sample]) -> None:
        by_role: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for sample in samples:
            by_role[sample.role][sample.rollout_id].append(sample.reward)
        for role, rollouts in by_role.items():
            mean = float(np.mean([np.mean(values) for values in rollouts.values()]))
            kept = self._decay ** len(rollouts)
            self._sums[role] = kept * self._sums.get(role, 0.0) + (1.0 - kept) * mean
            self._rollouts[role] = self._rollouts.get(role, 0) + len(rollouts)
