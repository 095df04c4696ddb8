"""``gae``: a critic over tokens, as in PPO: the trainer makes the advantages, by verl's generalised advantage estimation.

    A_t = Σ_l (γλ)^l δ_(t+l)        δ_t = r_t + γ V_(t+1) − V_t        r = the turn's reward at its last token, else 0

Each turn is an episode of its own: what a turn is worth is the reward that counts for it (``credit.team``, ``credit.local``), and the
critic says at each token what reward is to be expected. Here the rewards go through as they are; γ, λ and the critic
are settings of the section ``critic``, and the estimate is made where the critic is
(``coterie_trainers/backends/local/verl_critic.py``).

Why this baseline: it needs no siblings, and tokens that decided are told from those that did not. Values over tokens cost
a second model; ``turn_gae`` learns one value a turn instead, and looks beyond the turn.

Source: PPO (arXiv 1707.06347), GAE (arXiv 1506.02438). Where we depart: advantages are whitened over the tokens of a role, not of
the batch, so that roles with rewards of different scale learn alike.

Degrades to: REINFORCE with the critic as baseline for λ = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample


class Gae:
    """The rewards of turns, for the critic to make advantages of."""

    token_level = True

    def __call__(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """The reward of each of N turns."""
        return np.array([sample.reward for sample in samples], dtype=np.float64)
