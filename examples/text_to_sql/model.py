"""Makes what the demo trains: the data, and a small language model with a short warm start.

Run it alone with ``python model.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from database import DATABASE, build_database
from demonstrations import demonstrate
from questions import make_splits, write_tasks

from coterie_trainers import small_model

RUNS = 6000
"""Demonstrated team runs; each has a plan, a query and a review."""


def prepare(
    folder: Path, *, seed: int, progress: small_model.Progress, steps: int = small_model.STEPS, runs: int = RUNS
) -> None:
    """Make database, ``folder/data`` and ``folder/model``. Whatever an earlier call left there is replaced."""
    progress.stage("making questions and demonstrations")
    build_database(DATABASE)
    splits = make_splits()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, questions in splits.items():
        write_tasks(questions, data / f"{name}.jsonl")
    held_out = {question.gold.sql for question in splits["val"] + splits["test"]}
    demonstrations = list(demonstrate(splits["train"], runs, seed, held_out=held_out))
    small_model.make(folder / "model", demonstrations, seed=seed, progress=progress, steps=steps)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0, progress=small_model.Lines())
