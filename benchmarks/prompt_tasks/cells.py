"""The cells: a planted task, an arm (an optimiser with its settings), a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prompt_tasks.all_tasks import ALL

ROLLOUTS = 200
"""The budget of every cell, the seed prompts' validation and the held-out test of both sides included."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An optimiser as it is compared."""

    optimiser: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: bool = False
    """Whether the prompts that it tunes are worked examples; only for tasks in which an example can teach a lesson."""
    discernment: float | None = None
    """Of the reflecting model, where the arm looks at what depends on it."""


ARMS: Mapping[str, Arm] = {
    "gepa": Arm("gepa"),
    "gepa_trace": Arm("gepa", {"view": "trace"}),
    "contrast": Arm("contrast"),
    "apo": Arm("apo", {"beam": 2, "branch": 4, "rounds": 3, "validation_batch": 8}),
    "bootstrap": Arm("bootstrap", examples=True),
    "rewrite": Arm("rewrite"),
    "random_edits": Arm("random_edits"),
    "unchanged": Arm("unchanged"),
    "gepa_perfect_reader": Arm("gepa", discernment=1.0),
    "gepa_trace_perfect_reader": Arm("gepa", {"view": "trace"}, discernment=1.0),
}
"""By name. ``apo`` with its defaults (beam 4, branch 4, batches of 16) would spend the budget in its first round: a narrower
beam lets it do several. The ``perfect_reader`` arms have a reflecting model that always keeps to the role it is asked about.
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    task: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.arm}/{self.seed}"


def all_cells(seeds: int) -> Iterator[Cell]:
    """Every cell, seed by seed: what is there after a part of them is comparable."""
    for seed in range(seeds):
        for task, planted in ALL.items():
            for name, arm in ARMS.items():
                if not arm.examples or any(lesson.shown for lesson in planted.lessons):
                    yield Cell(task, name, seed)
