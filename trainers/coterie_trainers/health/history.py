"""History: the figures of a run so far, as rules look at them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coterie.vocabulary import Metrics

Values = Mapping[str, float | int | str | None]

THE_RUN = "the run"


@dataclass(frozen=True, slots=True)
class Point:
    """One figure at one step."""

    step: int
    value: float
    """NaN where the step had a figure that is no finite number."""


@dataclass(slots=True)
class History:
    """The figures of training steps and of looks at the validation split, by step."""

    steps: dict[int, Values] = field(default_factory=dict)
    looks: dict[int, Values] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Metrics], *, until: int) -> History:
        """What the store holds of a run up to a step. Later rows are of steps that were taken back."""
        history = cls()
        for row in rows:
            if row.step <= until and row.stage in ("train", "val"):
                history.add(row)
        return history

    def add(self, row: Metrics) -> None:
        """Take in the figures of one step or look; they replace earlier ones of the same."""
        (self.looks if row.stage == "val" else self.steps)[row.step] = row.values

    @property
    def now(self) -> int:
        """The last step; 0 before the first."""
        return max(self.steps, default=0)

    def figure(self, name: str) -> list[Point]:
        """A figure of the whole run, in order of steps; steps without it are left out."""
        return [Point(step, number(self.steps[step][name])) for step in sorted(self.steps) if name in self.steps[step]]

    def by_subject(self, name: str) -> Mapping[str, list[Point]]:
        """Whom a figure is about → its points, of all who have one at the last step.

        Roles, where the figure comes by role (``role/coder/entropy``); else policies (``big/entropy``), else the one
        policy (``entropy``).
        """
        now = self.steps.get(self.now, {})
        keys = [key for key in now if key == name or key.endswith(f"/{name}")]
        roles = [key for key in keys if key.startswith("role/")]
        return {_subject(key, name): self.figure(key) for key in roles or keys}

    def reward(self, subject: str) -> list[Point]:
        """The reward of a role; of anybody else the success of the team."""
        role = role_of(subject)
        own = self.figure(f"role/{role}/reward") if role else []
        return own or self.figure("success")


def number(value: float | int | str | None) -> float:
    """A figure as a number; NaN where it is none, as the store gives back what is not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def role_of(subject: str) -> str | None:
    """The role that a subject names, or None."""
    return subject.removeprefix("role '").removesuffix("'") if subject.startswith("role '") else None


def _subject(key: str, name: str) -> str:
    owner = key.removesuffix(name).removesuffix("/")
    if owner.startswith("role/"):
        return f"role '{owner.removeprefix('role/')}'"
    return f"policy '{owner}'" if owner else "the policy"
