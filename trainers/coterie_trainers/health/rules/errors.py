"""Errors: too many rollouts of the run, or calls of a role, fail. Above 5 % for long is a smell (prime-rl, ``docs/training.md``)."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import THE_RUN, History, Point, number
from coterie_trainers.health.rules.row import crossed
from coterie_trainers.health.verdict import Finding


def errors(history: History, limits: Limits) -> Iterator[Finding]:
    """The share of rollouts that failed, and of each role's calls."""
    failed = [
        Point(step, number(values["failed"]) / max(1.0, number(values["rollouts"])))
        for step, values in sorted(history.steps.items())
        if "failed" in values and "rollouts" in values
    ]
    shares = {THE_RUN: failed, **history.by_subject("error_rate")}
    for subject, points in shares.items():
        if (found := crossed(points, limits)) is not None:
            level, since = found
            what = "rollouts" if subject == THE_RUN else "calls"
            yield Finding("errors", level, subject, f"{points[-1].value:.0%} of the {what} fail", since)
