"""A figure that falls towards nothing, which is well only where the team succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from coterie_trainers.config import CollapseLimits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.row import BEGINNING, crossed, relative, rises
from coterie_trainers.health.verdict import Finding, Level

LEAST = 1e-3
"""Who begins below has nothing to lose: no finding."""


def collapsed(history: History, limits: CollapseLimits, *, rule: str, figure: str, unit: str) -> Iterator[Finding]:
    """Findings about all whose figure fell below the limits, as a share of the largest of its first values.

    The largest, not the mean: a collapse within the first steps must not lower what it is measured against.
    """
    successes = [point.value for point in history.figure("success")[-limits.steps :]]
    if successes and fmean(successes) >= limits.solved:
        return
    for subject, points in history.by_subject(figure).items():
        began = max(point.value for point in points[:BEGINNING])
        found = crossed(relative(points, began), limits, below=True) if began > LEAST else None
        if found is None:
            continue
        level, since = found
        rising = rises(history.reward(subject))
        value = points[-1].value
        yield Finding(
            rule,
            Level.WARN if rising else level,
            subject,
            f"{figure} fell to {value:.3g}{unit}, {value / began:.0%} of the {began:.3g} it began with"
            + ("" if rising else ", and reward no longer rises"),
            since,
        )
