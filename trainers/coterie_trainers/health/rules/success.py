"""Success: the team does worse on its training tasks than it did.

Every step measures this for nothing, long before the next look at the validation split. It is a rough measure: each step
has other tasks. So it is the mean over a row of steps that counts, against the best mean of as many steps before, and the fall
must be beyond ``NOISE`` standard errors of their difference. The error counts a group of rollouts of one task as one draw,
which is the worst case; the best of many means is high by chance, hence so many.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from statistics import fmean

from coterie_trainers.config import Limits
from coterie_trainers.health.history import THE_RUN, History, number
from coterie_trainers.health.rules.fall import fallen
from coterie_trainers.health.verdict import Finding, Level

NOISE = 4.0
"""Standard errors that a fall must be beyond."""


def success(history: History, limits: Limits) -> Iterator[Finding]:
    """The fall of the mean success over ``limits.steps`` steps below the best such mean."""
    points = [point for point in history.figure("success") if isfinite(point.value)]
    width = limits.steps
    if len(points) < 2 * width:
        return
    means = [fmean(point.value for point in points[end - width : end]) for end in range(width, len(points) + 1)]
    best, mean = max(means[:-width]), means[-1]
    groups = [number(history.steps[point.step].get("groups")) for point in points[-width:]]
    if not all(group >= 1 for group in groups):
        return
    level = fallen(best, mean, draws=sum(groups), errors=NOISE, limits=limits)
    if level is not Level.OK:
        reason = f"success on training tasks fell from {best:.0%} to {mean:.0%} (means of {width} steps)"
        yield Finding("success", level, THE_RUN, reason, points[-width].step)
