"""Running a cell, once: its folder says whether it is done, and a run that was cut off goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learn.cells import Cell

PREPARED = ("data", "model", "prepared.json")
"""What ``prepare`` leaves in a work folder. It depends on the example and the seed alone, so variants share it."""


class CellFailedError(Exception):
    """A cell's run ended with an error."""


def folder_of(work: Path, cell: Cell) -> Path:
    """Where a cell lies."""
    return work / cell.task / cell.variant / f"seed-{cell.seed}"


def figures_of(work: Path, cell: Cell, changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a finished run of exactly this cell found, or None."""
    folder = folder_of(work, cell)
    try:
        told = json.loads((folder / "cell.json").read_text())
        figures = json.loads((folder / "figures.json").read_text())
    except FileNotFoundError:
        return None
    if told != cell.fingerprint(changes) or figures["state"] != "succeeded":
        return None
    return {"task": cell.task, "variant": cell.variant, "seed": cell.seed, **told, "figures": figures}


def run_cell(work: Path, cell: Cell, changes: Mapping[str, Any]) -> None:
    """Train; goes on where an earlier call was cut off. What was made with other settings or files is replaced.

    Raises:
        CellFailedError: the run failed; the message says where its output is.
    """
    folder, told = folder_of(work, cell), cell.fingerprint(changes)
    mark = folder / "cell.json"
    if folder.exists() and (not mark.exists() or json.loads(mark.read_text()) != told):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(told))
    _share_prepared(work, cell, told["example"])
    settings = [f"--set={name}={json.dumps(value)}" for name, value in cell.settings(changes).items()]
    command = [
        *(str(Path(sys.executable).with_name("coterie")), "train", "app.py:team", "config.yaml"),
        *("--seed", str(cell.seed), "--out", str((folder / "work").resolve())),
        *("--json", str((folder / "figures.json").resolve()), *settings),
    ]
    # On shared cores the threads of torch wait for each other at full speed: a warm start then takes many times as long.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(
            command, cwd=cell.example, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if code != 0:
        raise CellFailedError(f"{cell} ended with exit code {code}; see {folder / 'log.txt'}")
    # Thousands of rollouts a cell: the figures are kept, the spans are not.
    for path in (folder / "work" / "checkpoints", folder / "work" / "store.db"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _share_prepared(work: Path, cell: Cell, example: str) -> None:
    """Take what ``prepare`` made from another variant's folder of the same example and seed."""
    target = folder_of(work, cell) / "work"
    if (target / "prepared.json").exists():
        return
    for other in (work / cell.task).glob(f"*/seed-{cell.seed}"):
        mark = other / "cell.json"
        source = other / "work"
        if (source / "prepared.json").exists() and json.loads(mark.read_text())["example"] == example:
            target.mkdir(parents=True, exist_ok=True)
            for name in PREPARED:
                copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
                copy(source / name, target / name)
            return
