"""Gradient: its norm is no finite number, or has left all that it was.

Spikes precede divergence (prime-rl, ``docs/training.md``). A single spike does little, since the gradient is clipped; a row
of them means that the steps are too large. One that is not finite stops at once: the weights or the data are broken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from coterie_trainers.config import Limits
from coterie_trainers.health.history import History, Point
from coterie_trainers.health.rules.row import crossed, relative
from coterie_trainers.health.verdict import Finding, Level

WINDOW = 20
"""The norm is compared with the median of so many steps before."""
LEAST_BEFORE = 3
"""Steps before without which there is nothing to compare with."""


def gradient(history: History, limits: Limits) -> Iterator[Finding]:
    """The norm before clipping, as a multiple of its median over the steps before."""
    for subject, points in history.by_subject("grad_norm").items():
        if math.isnan(points[-1].value):
            since = next(point.step for point in points if math.isnan(point.value))
            yield Finding("gradient", Level.STOP, subject, "the gradient's norm is no finite number", since)
            continue
        before = _before(points, limits.steps)
        usual = median(before) if len(before) >= LEAST_BEFORE else 0.0
        found = crossed(relative(points, usual), limits) if usual > 0 else None
        if found is not None:
            level, since = found
            value = points[-1].value
            reason = f"gradient norm {value:.3g}, {value / usual:.3g} times the usual {usual:.3g}"
            yield Finding("gradient", level, subject, reason, since)


def _before(points: list[Point], steps: int) -> list[float]:
    finite = [point.value for point in points[:-steps] if math.isfinite(point.value)]
    return finite[-WINDOW:]
