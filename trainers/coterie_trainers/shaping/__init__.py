"""Shaping: what is added to the rewards of turns so that they teach more. One shaper a file, chosen by name, in order::

    credit:
      shaping:
        - length: {limit: 400, soft: 100}
        - format: {pattern: "SELECT .*", roles: [coder]}
        - potential

A shaper is any callable ``Episode → one TurnReward a turn`` (``coterie.interfaces.RewardShaper``): what it adds to that turn.
The mix of team and local rewards is not one of them: it is how rewards reach turns at all (``credit.py``), and what
shapers add is added to it, with weights of their own. Another package adds its own with an entry point of the group
``coterie.shapers``.

Whether a shaper may make the wrong behaviour pay: ``checking.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from coterie.errors import ConfigError
from coterie.interfaces import RewardShaper
from coterie_trainers.offers import Offers

GROUP = "coterie.shapers"
"""The entry point group in which packages offer shapers."""

_OFFERS = Offers(
    "credit.shaping",
    "shaper",
    GROUP,
    {
        name: f"coterie_trainers.shaping.{name}:{kind}"
        for name, kind in {
            "difference": "Difference",
            "format": "Format",
            "length": "Length",
            "margin": "Margin",
            "potential": "Potential",
        }.items()
    },
)


def get(name: str, options: Mapping[str, Any] | None = None) -> RewardShaper:
    """The shaper of this name, made with these options.

    Raises:
        ConfigError: there is none of this name, two packages offer it, or it does not take these options.
    """
    return cast(RewardShaper, _OFFERS.get(name, options))


def names() -> list[str]:
    """The names that ``get`` knows, sorted."""
    return _OFFERS.names()


def check(chosen: Sequence[str | Mapping[str, Mapping[str, Any]]]) -> dict[str, RewardShaper]:
    """Resolve the shapers of a configuration before any work is done: name → shaper, in order.

    Args:
        chosen: Names, or mappings of one name to its options.

    Raises:
        ConfigError: as ``get``, or an entry has several names, or a name is given twice.
    """
    shapers: dict[str, RewardShaper] = {}
    for entry in chosen:
        pairs = [(entry, None)] if isinstance(entry, str) else list(entry.items())
        if len(pairs) != 1:
            raise ConfigError(f"credit.shaping: an entry is a name, or one name and its options; this is {entry!r}.")
        ((name, options),) = pairs
        if name in shapers:
            raise ConfigError(f"credit.shaping: {name!r} is given twice.")
        shapers[name] = get(name, options)
    return shapers
