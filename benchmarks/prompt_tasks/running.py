"""Running a cell: one tuning run of a planted team, through the whole of ``coterie optimize`` but its command line."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import coterie
from coterie.testing import ScriptedModel
from coterie.vocabulary import Task
from coterie_trainers.prompts.config import OptimizeConfig
from coterie_trainers.prompts.run import optimise
from prompt_tasks.all_tasks import ALL
from prompt_tasks.cells import ARMS, Cell
from prompt_tasks.planted import PlantedTask, close_client
from prompt_tasks.reflecting import DISCERNMENT, ReflectingModel

NO_EXAMPLES = "There are no examples yet."
WAIT_SECONDS = 60.0


class Quiet:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Kept."""
        self.lines.append(text)

    def warn(self, text: str) -> None:
        """Kept."""
        self.lines.append(text)

    def close(self) -> None:
        """Nothing."""


async def run_cell(cell: Cell, *, rollouts: int, folder: Path | None = None) -> dict[str, Any]:
    """The figures of a cell. Everything but them is thrown away.

    Args:
        cell: What to run.
        rollouts: The budget.
        folder: Where the store lies while it runs; a temporary folder's parent.
    """
    planted, arm = ALL[cell.task], ARMS[cell.arm]
    discernment = DISCERNMENT if arm.discernment is None else arm.discernment
    reflecting = ReflectingModel(planted, seed=cell.seed, discernment=discernment)
    began = time.perf_counter()
    progress = Quiet()
    with (
        tempfile.TemporaryDirectory(dir=folder) as work,
        ScriptedModel(planted.reply) as team_model,
        ScriptedModel(reflecting) as reflecting_model,
    ):
        config = config_of(cell, planted, reflecting_model.base_url, Path(work), rollouts=rollouts)
        team = planted.team(team_model.base_url)
        try:
            run = await optimise(team, config, folder=Path(work), work=Path(work) / "run", progress=progress)
        finally:
            await close_client(team_model.base_url)
        async with coterie.connect(str(Path(work) / "run" / "store.db")) as store:
            texts = {
                name: str((await store.get_resource(name, version["winner"])).content["text"])
                for name, version in run.summary["prompts"].items()
            }
    return {
        "task": cell.task,
        "arm": cell.arm,
        "seed": cell.seed,
        **figures(planted, texts, run.summary),
        "reflections": len(reflecting_model.requests),
        "seconds": round(time.perf_counter() - began, 2),
        "notes": progress.lines[-12:],
    }


def figures(planted: PlantedTask, texts: Mapping[str, str], summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run found: lessons, success on the held-out test, and what it spent."""
    by_role: dict[str, str] = {}
    for name, text in texts.items():
        role = name.partition("/")[0]
        by_role[role] = f"{by_role[role]}\n{text}" if role in by_role else text
    found = planted.found(by_role)
    added = sum(max(0, text.strip().count("\n")) for text in texts.values())
    before, after = summary["test_before"], summary["test_after"]
    return {
        "lessons": len(planted.lessons),
        "found": [lesson.text for lesson in found],
        "other_lines": added - sum(lesson.text in by_role[lesson.role] for lesson in found),
        "before": None if before is None else before["value"],
        "after": None if after is None else after["value"],
        "val": summary["val"],
        "winner": texts,
        "spent": dict(summary["spent"]),
    }


def config_of(cell: Cell, planted: PlantedTask, reflecting: str, folder: Path, *, rollouts: int) -> OptimizeConfig:
    """A cell's configuration, with its tasks as files."""
    arm = ARMS[cell.arm]
    prompts: dict[str, Any] = {role: {"text": text} for role, text in planted.prompts.items()}
    if arm.examples:
        prompts |= {f"{lesson.role}/examples": {"text": NO_EXAMPLES} for lesson in planted.lessons if lesson.shown}
    return OptimizeConfig.model_validate(
        {
            "name": str(cell).replace("/", "-"),
            "seed": cell.seed,
            "dataset": write_tasks(planted.tasks, folder),
            "prompts": prompts,
            "optimiser": {arm.optimiser: dict(arm.settings)},
            "reflection": {"base_url": reflecting, "model": "reflecting", "timeout_seconds": WAIT_SECONDS},
            "budget": {"rollouts": rollouts},
            "reward": {"name": "decided" if cell.task == "permits" else "reward"},
            # The deterministic team needs no second sample. What was found is judged here, so the winner is always taken.
            "selection": {"test_samples": 1, "gate": "none"},
            "runner": {"where": "here", "concurrency": 16},
        }
    )


def write_tasks(tasks: Sequence[Task], folder: Path) -> dict[str, str]:
    """A JSONL file a split, as a user would have them; gives the configuration's ``dataset``."""
    splits: dict[str, list[Task]] = {}
    for task in tasks:
        splits.setdefault(task.split, []).append(task)
    for split, several in splits.items():
        records = [{"id": task.id, "input": task.input, "reference": task.reference} for task in several]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {split: f"{split}.jsonl" for split in splits}
