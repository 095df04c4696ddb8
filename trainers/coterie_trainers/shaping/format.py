"""``format``: an answer that is not of the wanted form costs.

    −cost      the answer's text does not match the pattern from beginning to end
    0          it does

Why: a role whose answer cannot be parsed has failed before anybody judged what it says, and the team's reward tells so only
rollouts later and to all roles alike. A cost rather than a bonus: turns cannot be collected for pay.

What it may do wrong: with a cost as large as the reward, the right answer in the wrong form is worth no more than a wrong
one in the right form; ``checking.py`` tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from coterie.episodes import Episode
from coterie.errors import ConfigError
from coterie.interfaces import TurnReward
from coterie_trainers.shaping.bound import check_positive, concerns, for_calls


class Format:
    """A cost for answers that do not match ``pattern``, a regular expression in which a dot is any character."""

    def __init__(self, pattern: str, roles: Sequence[str] | None = None, cost: float = 0.1) -> None:
        check_positive("format", cost=cost)
        try:
            self._pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(
                f"credit.shaping: 'format' has the pattern {pattern!r}, which is wrong: {error}."
            ) from None
        self._roles, self._cost = roles, cost

    def __call__(self, episode: Episode) -> list[TurnReward]:
        """The costs of an episode's calls."""
        return for_calls(
            [
                -self._cost if concerns(turn, self._roles) and not self._pattern.fullmatch(turn.text) else 0.0
                for turn in episode.turns
            ]
        )
