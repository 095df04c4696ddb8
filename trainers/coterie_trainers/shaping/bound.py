"""What shapers add, bound as rewards are: to calls, or to roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.episodes import Episode, Turn
from coterie.errors import ConfigError
from coterie.interfaces import TurnReward
from coterie_trainers.chains import ends


def for_calls(value_T: Sequence[float]) -> list[TurnReward]:
    """Each turn gets its own, when it is made."""
    return [TurnReward(value, value) for value in value_T]


def for_roles(episode: Episode, values: Mapping[str, float]) -> list[TurnReward]:
    """Each turn of a role gets the role's; it arrives with the last turn of each of the role's chains."""
    last = ends(episode.turns)
    added = [values.get(turn.role, 0.0) for turn in episode.turns]
    return [TurnReward(value, value if place in last else 0.0) for place, value in enumerate(added)]


def concerns(turn: Turn, roles: Sequence[str] | None) -> bool:
    """True when a shaper for these roles, None for all, judges this turn. A call that failed has no answer to judge."""
    return turn.error is None and (roles is None or turn.role in roles)


def check_positive(shaper: str, **options: float) -> None:
    """Refuse options that are not above zero.

    Raises:
        ConfigError: one is not.
    """
    for name, value in options.items():
        if not value > 0 or value == float("inf"):
            raise ConfigError(f"credit.shaping: {shaper!r} has {name} = {value}; it must be a number above 0.")
