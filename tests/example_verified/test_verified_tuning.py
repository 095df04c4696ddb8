"""``coterie optimize`` on a copy of the example, in a process of its own, with scripted models behind a real socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_modules import EXAMPLES
from scripted_authors import LOOPS, answer

from coterie.testing import ScriptedModel

pytest.importorskip("z3")

OPTIMIZE = "import typer; from coterie_trainers.prompts.commands import optimize; typer.run(optimize)"
"""The command, whether or not the installed package knows of it."""


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


def optimize(
    folder: Path, model: ScriptedModel, *arguments: str, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """``coterie optimize`` in a copy of the example, in a process of its own."""
    root = EXAMPLES.parent
    paths = [str(root / "core"), str(root / "trainers"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "unused",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    settings = [f"reflection.base_url={model.base_url}", "reflection.model=reflector", "reflection.api_key=null"]
    given = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-c", OPTIMIZE, "app.py:team", "config.yaml", *given, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The example as a user copies it, with the tasks of three families."""
    folder = tmp_path / "verified_code"
    shutil.copytree(EXAMPLES / "verified_code", folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    for path in folder.glob("tasks/*.jsonl"):
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["metadata"]["family"] != "rounding"]
        path.write_text("\n".join(lines[:8]) + "\n")
    return folder


SMALL = "optimiser={apo: {beam: 1, branch: 1, rounds: 1, edits: all}}"


def test_coterie_optimize_reads_what_the_coder_lacks_in_what_the_verifier_says(
    copy: Path, model: ScriptedModel
) -> None:
    done = optimize(copy, model, "--set", SMALL, "--set", "selection.test_samples=1", "--json", "result.json")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((copy / "result.json").read_text())
    assert LOOPS in result["prompts"]["coder"]["after"]
    assert result["test_after"]["value"] > result["test_before"]["value"]
    assert "coder: version 1" in done.stdout
