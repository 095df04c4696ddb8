"""Makes what is trained: the data, and a small language model with a short warm start.

Run it alone with ``python model.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demonstrations import demonstrate
from trips import make_splits, write_tasks

from coterie_trainers import small_model

STEPS = 2400
"""Gradient steps of the warm start. With half of them the manager cannot read the requests, and no worker can make up for that."""
RUNS = 4000
"""Demonstrated runs of the team; each has five to seven calls."""


def prepare(folder: Path, *, seed: int, progress: small_model.Progress, steps: int = STEPS, runs: int = RUNS) -> None:
    """Make ``folder/data`` and ``folder/model``. Whatever an earlier call left there is replaced."""
    progress.stage("making requests and demonstrations")
    splits = make_splits()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, requests in splits.items():
        write_tasks(requests, data / f"{name}.jsonl")
    demonstrations = list(demonstrate(splits["train"], runs, seed))
    small_model.make(folder / "model", demonstrations, seed=seed, progress=progress, steps=steps)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0, progress=small_model.Lines())
