"""How long a store keeps what it has seen, and what was removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coterie.errors import ConfigError
from coterie.vocabulary import Mode


@dataclass(frozen=True, slots=True)
class Retention:
    """What ``Store.prune`` removes. Only what has ended is ever removed; tasks, resources and runs are kept.

    Raises:
        ConfigError: an age or a size is no number of 0 or more.
    """

    max_age_seconds: float | None = None
    """Of rollouts, and of spans that belong to no rollout of the store, counted from their end. None keeps all."""
    max_bytes: int | None = None
    """Of the store. What ended first goes first, until the rest fits. None lets it grow."""
    keep_modes: Sequence[Mode] = ()
    """Rollouts of these modes are never removed."""

    def __post_init__(self) -> None:
        for name, value in (("max_age_seconds", self.max_age_seconds), ("max_bytes", self.max_bytes)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"retention: {name} is {value}; give a number of 0 or more, or None for no limit.")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What ``Store.prune`` removed."""

    rollouts: int = 0
    attempts: int = 0
    spans: int = 0
    rewards: int = 0
    bytes_before: int = 0
    """Size of the store on disk before."""
    bytes_after: int = 0
    """Size of the store on disk after."""
