"""Limits that must be crossed several steps in a row, and what rules say about it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, variance

from coterie_trainers.config import Limits
from coterie_trainers.health.history import Point
from coterie_trainers.health.verdict import Level

BEGINNING = 3
"""The first so many values of a figure are what it began with."""
RISING_STEPS = 5
"""A reward rises when its mean over so many steps is above that over as many before, by more than their noise."""


def crossed(points: Sequence[Point], limits: Limits, *, below: bool = False) -> tuple[Level, int] | None:
    """The level whose limit the last ``limits.steps`` values all crossed, and the first step of that unbroken row.

    ``below`` turns it round: crossing is falling below. A value that is no number crosses nothing.
    """
    sign = -1.0 if below else 1.0
    for level, limit in ((Level.STOP, limits.stop), (Level.WARN, limits.warn)):
        if limit is None:
            continue
        row = _row(points, sign, limit)
        if len(row) >= limits.steps:
            gentler = limits.warn if limits.warn is not None else limit
            return level, _row(points, sign, gentler)[0].step
    return None


def relative(points: Sequence[Point], reference: float) -> list[Point]:
    """Each value as a multiple of a reference above 0."""
    return [Point(point.step, point.value / reference) for point in points]


def beginning(points: Sequence[Point]) -> float:
    """What a figure began with: the median of its first values."""
    return median(point.value for point in points[:BEGINNING])


def rises(points: Sequence[Point]) -> bool:
    """True where a reward still rises, or is too short to tell."""
    width = min(RISING_STEPS, len(points) // 2)
    if width < 2:
        return True
    later = [point.value for point in points[-width:]]
    earlier = [point.value for point in points[-2 * width : -width]]
    noise = ((variance(later) + variance(earlier)) / width) ** 0.5
    return bool(fmean(later) - fmean(earlier) > noise)


def _row(points: Sequence[Point], sign: float, limit: float) -> list[Point]:
    row: list[Point] = []
    for point in reversed(points):
        if not sign * point.value > sign * limit:
            break
        row.insert(0, point)
    return row
