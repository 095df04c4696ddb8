"""What a sink is: a place outside the store that takes a run's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coterie.vocabulary import JSON


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a sink is told of the run whose figures it takes."""

    id: str
    """The run's id: a resumed run has the same and goes on in the same place."""
    name: str
    """The configuration's name: what groups runs that are to be compared."""
    config: Mapping[str, JSON]
    folder: Path
    """The work folder, for sinks that write files."""
    first_step: int = 1
    """The step that the run begins or goes on with."""


class Sink(Protocol):
    """Takes figures. Its calls come from one thread, one after the other, and may block."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step, named as ``train/success``. A step may come several times, with other figures."""
        ...

    def close(self) -> None:
        """The run has ended, or stops for now."""
        ...


Opener = Callable[[RunFacts], Sink]
