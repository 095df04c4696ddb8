"""Clipping: so many tokens are beyond PPO's clip that the objective no longer sees them: steps are too large, or data too old."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.row import crossed
from coterie_trainers.health.verdict import Finding


def clipping(history: History, limits: Limits) -> Iterator[Finding]:
    """The share of trained tokens whose ratio is clipped."""
    for subject, points in history.by_subject("clip_fraction").items():
        if (found := crossed(points, limits)) is not None:
            level, since = found
            yield Finding("clipping", level, subject, f"{points[-1].value:.0%} of the tokens are clipped", since)
