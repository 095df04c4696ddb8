"""``potential``: progress is paid when it is made, without a change of what is best.

    F_t = γ · Φ(s_(t+1)) − Φ(s_t)       with Φ = 0 after the end

along each chain: the turns of one role under one agent path. Φ(s_t) is a reward named ``potential`` that is bound to
the call made in state s_t: how promising the situation looked (sub-goals reached, tests that pass), known before the call.

Why: a reward at the end of many turns tells little about each. F pays a turn at once for what it improved. It is the
only form of such pay that cannot be exploited: over a chain it adds up to −Φ(s_0), whatever was done in between, so that the
order of any two ways from the same start is kept. Going in circles earns nothing.

For estimators that take a turn's reward as the outcome of everything that follows (all but ``turn_gae``) the sum of F from
turn t on is what counts, and that is −Φ(s_t): a baseline that knows the situation. For ``turn_gae`` each F_t arrives with
its turn.

Sources: Ng, Harada and Russell, *Policy invariance under reward transformations* (ICML 1999); that its sum is a baseline:
Wiewiora (arXiv 1106.5267). γ must be the estimator's own.

Where we depart: calls that failed have no state; the chain goes from the call before to the call after, γ counted by call.
"""

from __future__ import annotations

import math

from coterie.episodes import Episode
from coterie.errors import ConfigError, RewardError
from coterie.interfaces import TurnReward
from coterie_trainers.chains import chains
from coterie_trainers.credit import where
from coterie_trainers.shaping.bound import check_positive


class Potential:
    """Differences of a potential along each chain."""

    def __init__(self, discount: float = 1.0, weight: float = 1.0, potential: str = "potential") -> None:
        check_positive("potential", weight=weight)
        if not 0 < discount <= 1:
            raise ConfigError(f"credit.shaping: 'potential' has discount = {discount}; it must lie in (0, 1].")
        self.discount = discount
        self._weight, self._potential = weight, potential

    def __call__(self, episode: Episode) -> list[TurnReward]:
        """What is added to each turn.

        Raises:
            RewardError: a call has no potential, several, or one that is no finite number.
        """
        potentials = self._potentials(episode)
        added = [TurnReward(0.0, 0.0)] * len(episode.turns)
        for chain in chains(episode.turns):
            to_go = after = 0.0
            for place in reversed(chain):
                here = potentials.get(episode.turns[place].call_id)
                step = 0.0 if here is None else self.discount * after - here
                if here is None:
                    # The call failed: its state is that of the next one, a call earlier.
                    after *= self.discount
                else:
                    after = here
                to_go = step + self.discount * to_go
                added[place] = TurnReward(self._weight * to_go, self._weight * step)
        return added

    def _potentials(self, episode: Episode) -> dict[str, float]:
        found: dict[str, float] = {}
        for reward in episode.rewards:
            if reward.name == self._potential and reward.call_id is not None:
                if reward.call_id in found or not math.isfinite(reward.value):
                    what = "two potentials" if reward.call_id in found else f"the potential {reward.value}"
                    raise RewardError(
                        f"{where(episode)}: call {reward.call_id} has {what}; it must have one finite number."
                    )
                found[reward.call_id] = reward.value
        for turn in episode.turns:
            if turn.error is None and turn.call_id not in found:
                raise RewardError(
                    f"{where(episode)}: 'potential' needs the worth of the state in which each call was made, and call "
                    f"{turn.call_id} of role {turn.role!r} has no reward named {self._potential!r}. Give one with "
                    f"coterie.reward(value, name={self._potential!r}, call_id=…)."
                )
        return {turn.call_id: found[turn.call_id] for turn in episode.turns if turn.error is None}
