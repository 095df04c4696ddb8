"""``coterie optimize`` on a copy of the example, in a process of its own, with scripted models behind a real socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from example_modules import EXAMPLES
from scripted_readers import ALONE, answer

from coterie.testing import ScriptedModel

pytest.importorskip("langchain_openai")

EXAMPLE = EXAMPLES / "retrieval_answers"
SMALL = "optimiser={apo: {beam: 1, branch: 1, rounds: 1, edits: all}}"
OPTIMIZE = "import typer; from coterie_trainers.prompts.commands import optimize; typer.run(optimize)"
"""The command, whether or not the installed package knows of it."""


def test_coterie_optimize_finds_the_answerers_lesson(tmp_path: Path) -> None:
    folder = tmp_path / "retrieval_answers"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    with ScriptedModel(answer) as model:
        root = EXAMPLES.parent
        paths = [
            str(root / "core"),
            str(root / "trainers"),
            str(root / "plugins/langchain"),
            os.environ.get("PYTHONPATH", ""),
        ]
        environment = {
            **os.environ,
            "CORPUS": str(root / "docs"),
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "unused",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        settings = [
            f"reflection.base_url={model.base_url}",
            "reflection.model=reflector",
            SMALL,
            "selection.test_samples=1",
        ]
        done = subprocess.run(
            [sys.executable, "-c", OPTIMIZE, "app.py:team", "config.yaml", "--json", "result.json"]
            + [part for setting in settings for part in ("--set", setting)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((folder / "result.json").read_text())
    assert ALONE in result["prompts"]["answerer"]["after"]
    assert (result["test_before"]["value"], result["test_after"]["value"]) == (0.0, pytest.approx(0.9, abs=0.1))
    assert result["taken"] is True
