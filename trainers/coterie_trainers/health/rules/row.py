"""Limits that must be crossed several steps in a row, and what rules say about it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile
from math import sqrt
from statistics import fmean, median

from coterie_trainers.config import Limits
from coterie_trainers.health.history import Point
from coterie_trainers.health.verdict import Level

BEGINNING = 3
"""The first so many values of a figure are what it began with."""
MEAN_STEPS = 3
"""Whether a reward rises or falls is seen from means over so many steps."""
SURE = 4.0
"""How many times the noise a fall must be: the best of many means is high by chance."""


def crossed(points: Sequence[Point], limits: Limits) -> tuple[Level, int] | None:
    """The level whose limit the last ``limits.steps`` values are all above, and the first step of that unbroken row.

    The row counts from where it crossed the gentler limit. A value that is no number crosses nothing.
    """
    for level, limit in ((Level.STOP, limits.stop), (Level.WARN, limits.warn)):
        if limit is not None and row_above(points, limit, limits.steps) is not None:
            since = row_above(points, limits.warn if limits.warn is not None else limit, 1)
            return level, since if since is not None else points[-1].step
    return None


def row_above(points: Sequence[Point], limit: float, steps: int) -> int | None:
    """The first step of the unbroken row of last values above a limit, if it has so many steps."""
    row = list(takewhile(lambda point: point.value > limit, reversed(points)))
    return row[-1].step if len(row) >= steps else None


def row_below(points: Sequence[Point], limit: float, steps: int) -> int | None:
    """The same for values below a limit."""
    return row_above([Point(point.step, -point.value) for point in points], -limit, steps)


def relative(points: Sequence[Point], reference: float) -> list[Point]:
    """Each value as a multiple of a reference above 0."""
    return [Point(point.step, point.value / reference) for point in points]


def beginning(points: Sequence[Point]) -> float:
    """What a figure began with: the median of its first values."""
    return median(point.value for point in points[:BEGINNING])


def rises(points: Sequence[Point]) -> bool:
    """True where a reward still rises, or is too short to tell: its last mean is above the one before by more than noise."""
    means = _means(points)
    return len(means) <= MEAN_STEPS or means[-1] - means[-1 - MEAN_STEPS] > _noise(points)


def falls(points: Sequence[Point]) -> bool:
    """True where a reward has come down: its last mean is below the best one before by more than ``SURE`` times the noise."""
    means = _means(points)
    return len(means) > MEAN_STEPS and max(means[:-MEAN_STEPS]) - means[-1] > SURE * _noise(points)


def _means(points: Sequence[Point]) -> list[float]:
    """The means over ``MEAN_STEPS`` values, one after the other."""
    values = [point.value for point in points]
    return [fmean(values[end - MEAN_STEPS : end]) for end in range(MEAN_STEPS, len(values) + 1)]


def _noise(points: Sequence[Point]) -> float:
    """The standard error of the difference of two means, from how much a step differs from the next (a trend adds little)."""
    jumps = [(later.value - earlier.value) ** 2 for earlier, later in pairwise(points)]
    return sqrt(fmean(jumps) / MEAN_STEPS)
