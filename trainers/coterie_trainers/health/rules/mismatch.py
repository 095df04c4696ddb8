"""Mismatch: the model that answers and the model that is trained are not the same.

The k3 estimate of KL(rollout ‖ trainer) a token, before the update (``coterie_trainers/mismatch.py``). A sustained, growing
mean is the early sign of off-policy collapse (prime-rl, ``docs/training.md``): a server that missed an update, rollouts that
are too old, or kernels that differ too much.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.row import crossed
from coterie_trainers.health.verdict import Finding


def mismatch(history: History, limits: Limits) -> Iterator[Finding]:
    """Mismatch KL in nats a token."""
    for subject, points in history.by_subject("mismatch_kl").items():
        if (found := crossed(points, limits)) is not None:
            level, since = found
            reason = f"rollouts and trainer differ by a KL of {points[-1].value:.2g} nats a token"
            yield Finding("mismatch", level, subject, reason, since)
