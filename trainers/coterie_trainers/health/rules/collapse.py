"""A figure that falls towards nothing.

That alone is no harm: a policy that is right may be certain, and one that has learnt all it can is certain too. So nothing is
said where the team succeeds. Elsewhere a deep fall is a warning; what stops the run is a fall, even if it is half as deep, with
which reward comes down.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from coterie_trainers.config import CollapseLimits
from coterie_trainers.health.history import History, Point
from coterie_trainers.health.rules.row import BEGINNING, falls, relative, row_below
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
        if not began > LEAST:
            continue
        shares = relative(points, began)
        deep = _since(shares, limits.warn, limits.steps)
        harmful = _since(shares, limits.stop, limits.steps) if falls(history.reward(subject)) else None
        since = deep if harmful is None else harmful
        if since is not None:
            yield Finding(
                rule,
                Level.WARN if harmful is None else Level.STOP,
                subject,
                f"{figure} fell to {points[-1].value:.3g}{unit}, {shares[-1].value:.0%} of the {began:.3g} it began with"
                + ("" if harmful is None else ", and reward falls with it"),
                since,
            )


def _since(shares: list[Point], limit: float | None, steps: int) -> int | None:
    return None if limit is None else row_below(shares, limit, steps)
