"""What all rooms of the loop share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.interfaces import Backend
from coterie.store.base import Store
from coterie.vocabulary import Decision, Task
from coterie_trainers.config import TrainConfig
from coterie_trainers.health.reverify import Verifier
from coterie_trainers.progress import Progress
from coterie_trainers.sinks.sinks import Sinks
from coterie_trainers.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Job:
    """One training run and what it works with."""

    config: TrainConfig
    run_id: str
    store: Store
    backend: Backend
    workspace: Workspace
    progress: Progress
    splits: Mapping[str, Sequence[Task]]
    """``train``, ``val`` and ``test``."""
    verifier: Verifier | None = None
    """Scores rollouts for the guard; nothing is trained on what it says."""
    sinks: Sinks = field(default_factory=Sinks)
    """Where figures go besides the store."""

    async def decide(self, kind: str, subject: str, evidence: Mapping[str, Any]) -> None:
        """Write down a decision of this run."""
        await self.store.add_decision(Decision(self.run_id, kind, subject, evidence))
