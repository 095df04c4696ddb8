"""Reward hacking: the reward says more than a held-out verifier, which never trains anything, can confirm (``health/reverify.py``)."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import THE_RUN, History, Point
from coterie_trainers.health.rules.row import crossed
from coterie_trainers.health.verdict import Finding

NOISE = 2.0
"""Standard errors that are taken off the gap, which is that of a sample of rollouts."""


def verifier_gap(history: History, limits: Limits) -> Iterator[Finding]:
    """Mean of reward less verified score, less its noise."""
    gaps = history.figure("verifier_gap")
    errors = {point.step: point.value for point in history.figure("verifier_gap_error")}
    sure = [Point(point.step, point.value - NOISE * errors.get(point.step, 0.0)) for point in gaps]
    if not sure or sure[-1].step != history.now or (found := crossed(sure, limits)) is None:
        return
    level, since = found
    verified = history.figure("verified")[-1].value
    reason = f"the held-out verifier confirms {verified:.3g} of a mean reward of {verified + gaps[-1].value:.3g}"
    yield Finding("verifier_gap", level, THE_RUN, reason, since)
