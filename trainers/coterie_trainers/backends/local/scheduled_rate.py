"""A policy's learning rate, in the place of a torch scheduler."""

from __future__ import annotations

from typing import Any

from coterie_trainers.config import Schedule
from coterie_trainers.learning_rate import learning_rate_factor


class ScheduledRate:
    """Sets the rate of an optimiser's parameters; ``step`` goes on to the next update."""

    def __init__(self, optimizer: Any, rate: float, schedule: Schedule) -> None:
        """Set the rate of the first update.

        Args:
            optimizer: A torch optimiser.
            rate: The highest rate.
            schedule: How it moves; one that falls must say over how many updates.
        """
        if schedule.kind != "constant" and schedule.steps is None:
            raise ValueError(f"a {schedule.kind} schedule needs its number of steps")
        self._optimizer = optimizer
        self._rate = rate
        self._schedule = schedule
        self._updates = 0
        self.apply()

    @property
    def rate(self) -> float:
        """The rate of the update to come."""
        schedule = self._schedule
        return self._rate * learning_rate_factor(
            self._updates,
            kind=schedule.kind,
            warmup=schedule.warmup,
            floor=schedule.floor,
            steps=schedule.steps or 1,
        )

    def apply(self) -> None:
        """Set it, also where another policy's has been set meanwhile."""
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self.rate

    def step(self) -> None:
        """An update is done."""
        self._updates += 1
        self.apply()

    def get_last_lr(self) -> list[float]:
        """The rate, as torch schedulers tell it."""
        return [self.rate]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        self._updates = int(state["updates"])
        self.apply()
