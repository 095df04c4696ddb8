"""The cells: a task, a variant of credit, a seed. Each is one ``coterie train`` in a folder of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"

TEAM_ONLY = {"credit.team": 1.0, "credit.local": 0.0}
"""The one reward of a rollout for each of its calls."""


LOOKS: Mapping[str, Any] = {"evaluation.every": 4, "evaluation.val_samples": 2}
"""How often a curve is looked at, and how closely: with one rollout a validation task a look is mostly noise."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """An example, and how it is trained in every one of its cells."""

    settings: Mapping[str, Any]
    variants: tuple[str, ...]
    separate: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Policy → roles, where each has its own."""


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "flat": {"credit.advantage": "transition", **TEAM_ONLY},
    "flat_own": {"credit.advantage": "transition"},
    "rollout": {"credit.advantage": "rollout", **TEAM_ONLY},
    "role_team": {"credit.advantage": "role", **TEAM_ONLY},
    "role_turn_team": {"credit.advantage": "role_turn", **TEAM_ONLY},
    "state_team": {"credit.advantage": "state", **TEAM_ONLY},
    "state_history_team": {"credit.advantage": "state_history", **TEAM_ONLY},
    "role": {"credit.advantage": "role"},
    "role_turn": {"credit.advantage": "role_turn"},
    "nested": {"credit.advantage": "nested"},
    "state": {"credit.advantage": "state"},
    "state_history": {"credit.advantage": "state_history"},
    "separate": {},
}
"""Name → settings. ``flat`` is GRPO over all calls of a task with the team's reward. The names that end in ``_team`` have the
same rewards as ``flat`` and differ in what is compared; the others have besides the rewards that the example binds to
roles and calls, in the proportion of its configuration. ``separate`` is the example as it is configured, but for its policies.
"""

BASELINE = "flat"

TASKS: Mapping[str, TaskPlan] = {
    "text_to_sql": TaskPlan(
        settings={"training.steps": 40, "training.max_seconds": None, **LOOKS},
        variants=("flat", "flat_own", "rollout", "role_team", "role", "role_turn", "separate"),
        separate={"analyst": ("analyst",), "coder": ("coder",), "reviewer": ("reviewer",)},
    ),
    "manager_workers": TaskPlan(
        settings={"training.steps": 40, **LOOKS},
        variants=(
            "flat",
            "flat_own",
            "rollout",
            "role_team",
            "role_turn_team",
            "role",
            "role_turn",
            "nested",
            "separate",
        ),
        separate={"manager": ("manager",), "workers": ("flights", "hotels", "events", "cars")},
    ),
    "long_horizon": TaskPlan(
        settings={"training.steps": 40, **LOOKS},
        variants=("flat", "rollout", "role_team", "state_team", "state_history_team", "role", "state", "separate"),
        separate={"planner": ("planner",), "executor": ("executor",)},
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    task: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.variant}/{self.seed}"

    @property
    def example(self) -> Path:
        """The example's folder."""
        return EXAMPLES / self.task

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What is set over the example's configuration; ``changes`` come last."""
        plan = TASKS[self.task]
        settings = {**plan.settings, **VARIANTS[self.variant]}
        if self.variant == "separate":
            (shared,) = yaml.safe_load((self.example / "config.yaml").read_text())["policies"].values()
            settings["policies"] = {policy: {**shared, "roles": list(roles)} for policy, roles in plan.separate.items()}
        return {**settings, **changes}

    def fingerprint(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What makes two runs of the cell the same: its settings, and the example's files."""
        digest = hashlib.sha256()
        for file in sorted([*self.example.glob("*.py"), self.example / "config.yaml"]):
            digest.update(file.name.encode() + file.read_bytes())
        return {"settings": json.loads(json.dumps(self.settings(changes))), "example": digest.hexdigest()[:16]}


def all_cells(seeds: int) -> Iterator[Cell]:
    """Every cell, seed by seed: what is there after a part of them is comparable."""
    for seed in range(seeds):
        for task, plan in TASKS.items():
            for variant in plan.variants:
                yield Cell(task, variant, seed)
