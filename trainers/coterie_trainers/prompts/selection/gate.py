"""The gate: a winner is taken only if its gain over the seed is shown on tasks that both played."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from coterie_trainers.intervals import Interval, difference_interval


@dataclass(frozen=True, slots=True)
class Gain:
    """What a winner gained over the seed, and whether that is shown."""

    interval: Interval
    """The winner's mean less the seed's."""
    shown: bool
    reason: str
    """Why, or why not, for people."""


def gain_shown(
    seed: Mapping[str, Sequence[float]], winner: Mapping[str, Sequence[float]], *, confidence: float = 0.95
) -> Gain:
    """Whether the winner is better than the seed, by a paired bootstrap over tasks.

    Shown means that the interval lies above 0, and that so many tasks differ that an exact sign test could show anything at
    this confidence: 6 at 0.95, for of five coins all fall on one side in one case of 16. On fewer, a bootstrap interval is
    narrow because little was seen, and not because much is known.

    Args:
        seed: Task id → one score a rollout.
        winner: The same for the same tasks.
        confidence: Of the interval, which has two sides.

    Raises:
        ConfigError: no task, or not the same tasks on both sides.
    """
    interval = difference_interval(seed, winner, level=confidence)
    differ = sum(fmean(seed[task]) != fmean(winner[task]) for task in seed)
    needed = math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)
    gained = f"gain {interval.value:+.3g}, {confidence:.0%} interval {interval.low:.3g} to {interval.high:.3g}"
    if interval.low <= 0:
        return Gain(interval, False, f"{gained}: it does not lie above 0. More test tasks or samples make it narrower")
    if differ < needed:
        few = f"only {differ} of {interval.tasks} tasks differ, and below {needed} chance cannot be ruled out"
        return Gain(interval, False, f"{gained}: {few}. More test tasks would tell")
    return Gain(interval, True, f"{gained}, on {interval.tasks} tasks")
