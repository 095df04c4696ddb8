from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.errors import CoterieError
from coterie_trainers.prepare import ensure_prepared

MODULE = """
from pathlib import Path
def make(folder: Path, *, seed, progress):
    progress.stage("making", 2)
    progress.advance(2, loss=0.5)
    print("a stray line")
    with (folder / "calls").open("a") as calls:
        calls.write(f"{seed}\\n")
def broken(folder, *, seed, progress):
    raise ValueError("no corpus at hand")
"""


class Heard:
    def __init__(self) -> None:
        self.lines: list[object] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.lines.append((name, total))

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        self.lines.append((amount, figures))

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note

    def close(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODULE)
    return tmp_path


async def test_prepare_runs_once_and_its_progress_comes_through(folder: Path):
    heard = Heard()
    for seed in (3, 3, 4):
        await ensure_prepared("model.py:make", folder=folder, work=folder, seed=seed, progress=heard)
    assert (folder / "calls").read_text() == "3\n4\n"
    assert heard.lines[:3] == [("making", 2), (2, {"loss": 0.5}), "a stray line"]
    assert json.loads((folder / "prepared.json").read_text()) == {"prepare": "model.py:make", "seed": 4}


@pytest.mark.parametrize(
    ("spec", "told"),
    [("model.py:broken", "no corpus at hand"), ("model.py:nothing", "'nothing'"), ("absent.py:make", "absent.py")],
)
async def test_what_fails_is_told_and_leaves_no_mark(folder: Path, spec: str, told: str):
    with pytest.raises(CoterieError, match=told):
        await ensure_prepared(spec, folder=folder, work=folder, seed=0, progress=Heard())
    assert not (folder / "prepared.json").exists()
