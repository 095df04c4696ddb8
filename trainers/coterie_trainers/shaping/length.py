"""``length``: answers beyond a length cost, the more the longer, so that the limit is no cliff.

    0                                tokens ≤ limit − soft
    −weight · (tokens − limit + soft) / soft      in between
    −weight                          tokens ≥ limit

Why: an answer that was cut off is lost, whatever was in it, and one that nearly was got the same reward as a short one. A
slope before the limit says so beforehand. It is bound to the call whose answer is long: other turns of the rollout are
not blamed.

Source: soft overlong punishment, DAPO (arXiv 2503.14476, equation 13), where weight is 1.

What it may do wrong: more than ``weight`` can never be lost by length, so as long as a wrong answer costs more than that, no
short wrong answer pays more than a long right one. With a larger weight it does; ``checking.py`` tells.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.episodes import Episode
from coterie.errors import ConfigError, RewardError
from coterie.interfaces import TurnReward
from coterie_trainers.credit import where
from coterie_trainers.shaping.bound import check_positive, concerns, for_calls


class Length:
    """A cost for answers of more than ``limit − soft`` tokens."""

    def __init__(self, limit: float, soft: float, weight: float = 1.0, roles: Sequence[str] | None = None) -> None:
        check_positive("length", limit=limit, soft=soft, weight=weight)
        if soft > limit:
            raise ConfigError(f"credit.shaping: 'length' has soft = {soft}, more than its limit {limit}.")
        self._limit, self._soft, self._weight, self._roles = limit, soft, weight, roles

    def __call__(self, episode: Episode) -> list[TurnReward]:
        """The costs of an episode's calls.

        Raises:
            RewardError: the token ids of an answer are missing.
        """
        cost_T = []
        for turn in episode.turns:
            if not concerns(turn, self._roles):
                cost_T.append(0.0)
                continue
            if turn.response_ids is None:
                raise RewardError(
                    f"{where(episode)}: 'length' cannot tell how long the answer to call {turn.call_id} of role "
                    f"{turn.role!r} is, for it came without token ids. Ask the model server for them, or name the roles "
                    "that have them."
                )
            beyond = (len(turn.response_ids) - self._limit + self._soft) / self._soft
            cost_T.append(-self._weight * min(max(beyond, 0.0), 1.0))
        return for_calls(cost_T)
