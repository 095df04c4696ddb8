"""Weights & Biases: a run of the project that the configuration's name names. ``WANDB_MODE=offline`` works too."""

from __future__ import annotations

from collections.abc import Mapping

import wandb

from coterie_trainers.sinks.sink import RunFacts

STEP = "step"
"""The horizontal axis. W&B's own step may only grow, ours comes several times, and again where a run resumes."""


class WandbSink:
    """The W&B run of the same id; it is resumed if it exists."""

    def __init__(self, facts: RunFacts) -> None:
        self._run = wandb.init(
            project=facts.name,
            id=facts.id,
            name=facts.id,
            config=dict(facts.config),
            dir=str(facts.folder),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, login_timeout=30),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log figures with their step."""
        self._run.log({STEP: step, **figures})

    def close(self) -> None:
        """End the session; the last figures are brought to the service."""
        self._run.finish()
