"""What the guard says: ok, warn or stop, with a written reason for each thing it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    """Nothing was found."""
    WARN = 1
    """Somebody should look; the run goes on."""
    STOP = 2
    """The run goes back to its last good version and ends."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found."""

    rule: str
    """The rule's name, as in the configuration."""
    level: Level
    subject: str
    """Whom it is about, such as ``role 'coder'`` or ``the run``."""
    reason: str
    """What was seen, with figures, in a sentence without its end."""
    since: int
    """The first step of the unbroken row of steps in which it was seen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that was found after one step, the worst first."""

    step: int
    findings: Sequence[Finding] = ()

    @property
    def level(self) -> Level:
        """The worst level found."""
        return max((finding.level for finding in self.findings), default=Level.OK)

    @property
    def stops(self) -> Sequence[Finding]:
        """The findings that end the run."""
        return [finding for finding in self.findings if finding.level is Level.STOP]

    @property
    def since(self) -> int:
        """The step at which what ends the run began; the present one if nothing does."""
        return min((finding.since for finding in self.stops), default=self.step)
