"""What tests of the loop train in and with: a folder with tasks, settings for it, and somebody to tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie_trainers.config import TrainConfig

SPLITS = ("train", "val", "test")


def write_project(folder: Path, app: str) -> Path:
    """Write ``app.py`` and three tasks of each split; gives the folder."""
    (folder / "app.py").write_text(app)
    for split in SPLITS:
        lines = [json.dumps({"id": f"{split}-{n}", "input": n}) for n in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def small_config(
    *, evaluation: Mapping[str, Any], runner: Mapping[str, Any], training: Mapping[str, Any] | None = None, **more: Any
) -> TrainConfig:
    """Two steps in such a folder, unless ``training`` says otherwise; ``more`` are settings beside the sections."""
    return TrainConfig.model_validate(
        {
            "name": "t",
            "dataset": {split: f"{split}.jsonl" for split in SPLITS},
            "policies": {"team": {"model": "m"}},
            "training": {"steps": 2, "tasks_per_step": 3, "rollouts_per_task": 2, **(training or {})},
            "evaluation": {"test_samples": 1, **evaluation},
            "runner": runner,
            **more,
        }
    )


class Told:
    """Progress that keeps what people are to read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def stage(self, name: str, total: int | None = None) -> None: ...
    def advance(self, amount: int = 1, **figures: float | str) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def close(self) -> None: ...
