"""``coterie train`` and ``coterie demo`` from end to end: real loop, store, runner and sockets; only the model is scripted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.errors import ConfigError
from coterie_trainers.commands import copy_example, example_folder

pytest.importorskip("openai")

APP = """
import itertools
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)
flip = itertools.count()

@coterie.rollout
async def team(task):
    with coterie.agent("solver"):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])
    return float(next(flip) % 2)
"""
CONFIG = """
name: Tiny team!
dataset: {train: train.jsonl, val: val.jsonl, test: test.jsonl}
policies: {team: {model: m}}
training: {steps: 3, tasks_per_step: 2, rollouts_per_task: 2}
evaluation: {every: 2, test_samples: 1}
runner: {concurrency: 1}
"""
COMMAND_WITH_A_SCRIPTED_MODEL = """
import sys
sys.path.insert(0, sys.argv.pop(1))
delay = float(sys.argv.pop(1))
from scripted_backend import ScriptedBackend
from coterie.cli import main
from coterie.testing import Reply, ScriptedModel
from coterie_trainers import commands
from coterie_trainers.loop import run
commands._require_training_stack = lambda: None
with ScriptedModel(lambda request: Reply("fine", delay_seconds=delay)) as model:
    run.make_backend = lambda *_: ScriptedBackend(model)
    main()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "config.yaml").write_text(CONFIG)
    for split in ("train", "val", "test"):
        lines = [json.dumps({"id": f"{split}-{n}", "input": n, "metadata": {"family": "f"}}) for n in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def start(*arguments: str, cwd: Path, delay: float = 0.0) -> subprocess.Popen[str]:
    beside = str(Path(__file__).parents[1] / "loop")
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND_WITH_A_SCRIPTED_MODEL, beside, str(delay), *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        shown, told = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, shown, told


def test_training_shows_progress_then_the_report_and_is_done_once(project: Path):
    arguments = ("train", "team/app.py:team", "team/config.yaml", "--seed", "5", "--json", "figures.json")
    outside = project.parent / "outside"
    outside.mkdir()
    (outside / "team").symlink_to(project)
    code, shown, told = finish(start(*arguments, cwd=outside))
    assert code == 0, told
    assert "training 3/3" in told
    assert "Traceback" not in told
    work = outside / "runs" / "Tiny-team" / "seed-5"
    assert (work / "report.html").is_file()
    assert "Success went from" in shown
    assert str(work / "report.html") in shown
    figures = json.loads((outside / "figures.json").read_text())
    assert (figures["seed"], figures["steps"]) == (5, 3)
    assert figures["rollouts_by_mode"] == {"test": 12, "train": 12, "val": 6}
    assert figures["calls_by_role"] == {"solver": 30}

    code, shown, told = finish(start(*arguments, cwd=outside))
    assert code == 0, told
    assert "is finished already" in told
    assert "Success went from" in shown


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_does(project: Path, ending: signal.Signals):
    arguments = ("train", "app.py:team", "config.yaml", "--out", "work")
    process = start(*arguments, "--fresh", cwd=project, delay=0.2)
    until = time.monotonic() + 60
    while not list((project / "work").glob("checkpoints/step-000001")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(ending)
    code, shown, told = finish(process)
    assert code == 130, told
    assert "Traceback" not in told
    assert "coterie train app.py:team config.yaml --out work" in told
    assert "--fresh" not in told.splitlines()[-1]
    assert shown == ""
    code, shown, told = finish(start(*arguments, cwd=project))
    assert code == 0, told
    assert "resuming after step" in told
    assert "in 3 steps" in shown


def test_other_settings_on_an_unfinished_run_are_refused(project: Path):
    assert finish(start("train", "app.py:team", "config.yaml", "--out", "work", cwd=project))[0] == 0
    changed = ("train", "app.py:team", "config.yaml", "--out", "work", "--set", "training.steps=4")
    code, _, told = finish(start(*changed, cwd=project))
    assert code == 2
    assert "--fresh" in told
    code, shown, told = finish(start(*changed, "--fresh", cwd=project))
    assert code == 0, told
    assert "in 4 steps" in shown


def test_a_json_file_that_cannot_be_written_is_refused_before_training(project: Path):
    code, _, told = finish(start("train", "app.py:team", "config.yaml", "--json", "no/f.json", cwd=project))
    assert code == 2
    assert "--json no/f.json" in told
    assert not (project / "runs").exists()


def test_a_module_beside_the_user_is_found(project: Path):
    (project / "settings").mkdir()
    (project / "config.yaml").rename(project / "settings" / "config.yaml")
    code, _, told = finish(start("train", "app:crew", "settings/config.yaml", cwd=project))
    assert code == 2
    assert "there is no 'crew'" in told


def test_the_demo_copies_its_folder_and_keeps_what_was_changed(tmp_path: Path):
    code, _, told = finish(start("demo", "--out", "mine", "--set", "training.steps=0", cwd=tmp_path))
    assert code == 2
    assert "mine/config.yaml with --set training.steps=0: training.steps = 0 is not allowed" in told
    example = example_folder("text_to_sql")
    names = {path.name for path in example.iterdir() if path.name != "__pycache__"}
    assert {"app.py", "config.yaml"} <= {path.name for path in (tmp_path / "mine").iterdir()} <= names
    (tmp_path / "mine" / "app.py").write_text("changed")
    (tmp_path / "mine" / "config.yaml").unlink()
    copy_example("text_to_sql", tmp_path / "mine")
    assert (tmp_path / "mine" / "app.py").read_text() == "changed"
    assert (tmp_path / "mine" / "config.yaml").read_text() == (example / "config.yaml").read_text()


def test_an_example_that_cannot_be_copied_is_explained(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        copy_example("text_to_sql", tmp_path / "file")
