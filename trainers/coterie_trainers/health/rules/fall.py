"""A share that fell, by more than a limit and by more than chance."""

from __future__ import annotations

from math import sqrt

from coterie_trainers.config import Limits
from coterie_trainers.health.verdict import Level


def fallen(best: float, now: float, *, draws: float, errors: float, limits: Limits) -> Level:
    """The level whose limit a fall of success is beyond, and beyond ``errors`` standard errors of the difference too.

    Args:
        best: A share of ``draws`` draws.
        now: A later one, of as many.
        draws: Without any, chance is not counted.
        errors: How many standard errors.
        limits: The falls that count.
    """
    middle = (best + now) / 2
    chance = errors * sqrt(2 * middle * (1 - middle) / draws) if draws >= 1 else 0.0
    for level, limit in ((Level.STOP, limits.stop), (Level.WARN, limits.warn)):
        if limit is not None and best - now > max(limit, chance):
            return level
    return Level.OK
