"""``turn_gae``: a critic over turns: what the team gained from a turn on, against what the critic had expected there.

    δ_t = r_t + γ · V_(t+1) − V_t          A_t = δ_t + γλ · A_(t+1)          V after the last turn = 0
    advantage of a turn = (A_t − mean_role) / std_role

t counts the turns of one chain: the calls of one role under one agent path in one rollout, in order of time. r_t is what
arrives with turn t (``Sample.step_reward``): the reward of its call; with the chain's last turn also the team's and the role's.
V_t is the critic's value at the last token of the turn's prompt (``Sample.value``). mean and std are over the role's turns
of the step.

Why this baseline: a critic judges each situation by itself, so that a rollout needs no siblings, and a turn that made things
worse is told from one that was in a bad place already, even within a rollout that was won. Time is counted in turns
rather than tokens: the chain is short, a reward at its end reaches its beginning with little discount, and what a critic
must know is the worth of a situation, not that of half a word. Every token of a turn has the turn's advantage, which is
the high level of a hierarchy whose low level is the token-wise update of the policy.

Why whitened: clipping and learning rate then mean the same for all scales of reward. By role, because roles that share a
policy may be rewarded on scales that differ by orders of magnitude.

Sources: generalised advantage estimation (arXiv 1506.02438); a critic at the level of utterances: ArCHer (arXiv 2402.19446).

Where we depart: ArCHer learns Q and V off-policy with target networks; here V is a state value, learnt on-policy. Whitening,
as in verl, but by role and without epsilon: turns without spread give exactly 0.

Degrades to: REINFORCE with the critic as baseline where each chain is one turn or γ = λ = 1; 0 for a role's only turn.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.errors import ConfigError
from coterie.interfaces import Sample
from coterie_trainers.advantages.grouping import standardised

DISCOUNT = 1.0
"""γ: what a reward is worth a turn earlier. Episodes end, so that no discount is needed."""
TRACE = 0.95
"""λ: how much more a turn trusts what came after than the critic."""


class TurnGae:
    """Generalised advantages over the turns of each chain, by a critic's values."""

    needs_values = True

    def __init__(self, discount: float = DISCOUNT, trace: float = TRACE) -> None:
        for name, value in (("discount", discount), ("trace", trace)):
            if not 0 <= value <= 1:
                raise ConfigError(f"advantage: 'turn_gae' has {name} = {value}; it must lie between 0 and 1.")
        self._discount = discount
        self._trace = trace

    def __call__(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """Whitened advantages of N turns: ``advantages_N``.

        Raises:
            ConfigError: a turn has no value or no step reward.
        """
        return standardised(self._raw(samples), [sample.role for sample in samples], range(len(samples)))

    def returns(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """What the critic should have said, A_t before whitening + V_t: the targets that it is trained on, ``return_N``.

        Raises:
            ConfigError: a turn has no value or no step reward.
        """
        value_N = np.array([sample.value for sample in samples], dtype=np.float64)
        return self._raw(samples) + value_N

    def _raw(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        advantages_N = np.zeros(len(samples))
        for places in _chains(samples):
            advantage = value_after = 0.0
            for place in reversed(places):
                reward, value = _known(samples[place])
                advantage = reward + self._discount * (value_after + self._trace * advantage) - value
                value_after = value
                advantages_N[place] = advantage
        return advantages_N


def _chains(samples: Sequence[Sample]) -> list[list[int]]:
    chains: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for place in sorted(range(len(samples)), key=lambda place: samples[place].step):
        sample = samples[place]
        chains[sample.rollout_id, sample.role, sample.agent_path].append(place)
    return list(chains.values())


def _known(sample: Sample) -> tuple[float, float]:
    """The step reward and the value of a turn."""
    if sample.value is None or not math.isfinite(sample.value):
        raise ConfigError(
            f"advantage: 'turn_gae' needs a critic's value of every turn, and that of role {sample.role!r}, turn "
            f"{sample.turn}, in rollout {sample.rollout_id} is {sample.value}. Train a critic for the policy of this "
            "role, or give the role an estimator that needs none."
        )
    if sample.step_reward is None:
        raise ConfigError(
            f"advantage: 'turn_gae' needs to know what arrives with each turn, and that of role {sample.role!r}, turn "
            f"{sample.turn}, in rollout {sample.rollout_id} does not say: set step_reward of its sample."
        )
    return sample.step_reward, sample.value
