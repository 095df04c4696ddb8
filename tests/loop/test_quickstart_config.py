"""The quickstart example's configuration and tasks are what ``coterie train`` takes."""

from __future__ import annotations

import json
from pathlib import Path

from coterie_trainers.config_file import load_config
from coterie_trainers.datasets import load_splits

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart"


def test_quickstart_is_configured():
    config = load_config(EXAMPLE / "config.yaml")
    splits = load_splits(config.dataset, folders=[EXAMPLE], name=config.name)
    assert {name: len(tasks) for name, tasks in splits.items()} == {"train": 64, "val": 16, "test": 16}
    assert not {task.input for task in splits["train"]} & {task.input for task in splits["test"]}
    assert json.loads((EXAMPLE / "tasks" / "train.jsonl").read_text().splitlines()[0])["reference"]
