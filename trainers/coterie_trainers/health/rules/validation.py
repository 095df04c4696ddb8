"""Validation: success on the validation split has fallen below the best look by more than a margin, and by more than chance.

Chance: ``NOISE`` standard errors of the difference of two shares of so many rollouts each. The best of many looks is high by
chance: with 96 rollouts a look, two standard errors would stop nearly every steady run within 40 looks, four one in fifty.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import THE_RUN, History, number
from coterie_trainers.health.rules.fall import fallen
from coterie_trainers.health.verdict import Finding, Level

NOISE = 4.0
"""Standard errors that a fall must be beyond."""


def validation(history: History, limits: Limits) -> Iterator[Finding]:
    """The fall of the last look below the best one before it; said once, at the step of the look."""
    looks = {step: number(values.get("success")) for step, values in history.looks.items()}
    now = looks.pop(history.now, None)
    if now is None or not looks:
        return
    best_step = max(looks, key=lambda step: (looks[step], step))
    best = looks[best_step]
    rollouts = number(history.looks[history.now].get("rollouts"))
    level = fallen(best, now, draws=rollouts, errors=NOISE, limits=limits)
    if level is not Level.OK:
        reason = f"success on validation fell from {best:.0%} after step {best_step} to {now:.0%}"
        yield Finding(
            "validation", level, THE_RUN, reason, min(step for step in (*looks, history.now) if step > best_step)
        )
