"""Records as they are, on their way from one store to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.vocabulary import Attempt, Decision, Metrics, Resource, Reward, Rollout, Run, Span, Task


@dataclass(frozen=True, slots=True)
class Records:
    """Records with their states and versions, for ``Store.load``."""

    tasks: Sequence[Task] = ()
    resources: Sequence[Resource] = ()
    runs: Sequence[Run] = ()
    metrics: Sequence[Metrics] = ()
    decisions: Sequence[Decision] = ()
    rollouts: Sequence[Rollout] = ()
    attempts: Sequence[Attempt] = ()
    spans: Sequence[Span] = ()
    rewards: Sequence[Reward] = ()
