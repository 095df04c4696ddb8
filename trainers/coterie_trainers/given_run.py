"""What a command line says of a run: its seed and other settings, where its app lies, and its work folder."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int | None, typer.Option(help="Seed of the run; the config's by default.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as training.steps=5. May be repeated."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget an unfinished run and start anew.")]


def with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    """The overrides, with that of the seed if it was given."""
    return [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]


def beside(app: str, folder: Path) -> str:
    """The app as the training loop looks for it: a file in the working folder is named from the config's folder."""
    file, colon, name = app.rpartition(":")
    path = Path(file)
    if not colon or not path.is_file() or (folder / file).is_file():
        return app
    return f"{os.path.relpath(path.resolve(), folder)}:{name}"


def let_modules_be_found(app: str) -> None:
    """Let a module beside the user be found, which a console script does not see by itself."""
    if not app.rpartition(":")[0].endswith(".py"):
        sys.path.append(str(Path.cwd()))


def work_folder(name: str, seed: int) -> Path:
    """Where a run of this name and seed works unless told otherwise: ``runs/NAME/seed-N``."""
    return Path("runs") / _file_name(name) / f"seed-{seed}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
