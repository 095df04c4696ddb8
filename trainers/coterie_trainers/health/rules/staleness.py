"""Staleness: answers come from versions of the policy that are too old to learn from (``health/staleness.py``)."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.row import crossed
from coterie_trainers.health.verdict import Finding


def staleness(history: History, limits: Limits) -> Iterator[Finding]:
    """Mean age of a role's answers, in versions of its policy."""
    for subject, points in history.by_subject("staleness").items():
        if (found := crossed(points, limits)) is not None:
            level, since = found
            reason = f"answers are {points[-1].value:.3g} versions older than the policy that learns from them"
            yield Finding("staleness", level, subject, reason, since)
