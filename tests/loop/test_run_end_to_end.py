"""The example on real verl and vLLM: killed, interrupted, resumed, finished. Small in every number, the same in kind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.train, pytest.mark.timeout(420)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_to_sql"
QUICK = """
from model import prepare as make_model
def prepare(folder, *, seed, progress):
    make_model(folder, seed=seed, progress=progress, steps=200, runs=2000)
"""
STEPS = 6
SETTINGS = (
    "prepare=quick_model.py:prepare",
    f"training.steps={STEPS}",
    "training.tasks_per_step=6",
    "training.rollouts_per_task=4",
    "evaluation.every=3",
    "evaluation.val_tasks=8",
    "evaluation.test_samples=1",
    "dataset.test={jsonl: data/test.jsonl, limit: 16}",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "team"
    shutil.copytree(EXAMPLE, target, ignore=shutil.ignore_patterns("*.db", "__pycache__"))
    (target / "quick_model.py").write_text(QUICK)
    return target


def start(folder: Path) -> subprocess.Popen[str]:
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    return subprocess.Popen(
        [
            *(Path(sys.executable).with_name("coterie"), "train", "app.py:team", "config.yaml", "--out", "work"),
            *("--json", "figures.json", *settings),
        ],
        cwd=folder,
        # Threads that wait for each other on a busy machine take ten times as long as one alone.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(folder: Path, process: subprocess.Popen[str], steps: int) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"ended before step {steps}:\n{process.communicate()[0]}")
        if steps_saved(folder) >= steps:
            return
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"no step {steps} in time:\n{process.communicate()[0]}")


def steps_saved(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "work" / "checkpoints").glob("step-??????")), default=0)


def leftovers(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        try:
            text = " ".join(process.info["cmdline"] or ()) + str(process.info["cwd"])
        except psutil.Error:
            continue
        if str(folder) in text and process.status() != psutil.STATUS_ZOMBIE:
            found.append(text)
    return found


def assert_nothing_left(folder: Path, shared_memory: set[str]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if not leftovers(folder) and set(os.listdir("/dev/shm")) <= shared_memory:
            return
        time.sleep(0.2)
    pytest.fail(f"left: {leftovers(folder)}, {set(os.listdir('/dev/shm')) - shared_memory}")


def ask(folder: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / "work" / "store.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_killed_run_goes_on_from_its_last_step_and_loses_nothing(folder: Path):
    shared_memory = set(os.listdir("/dev/shm"))

    first = start(folder)
    wait_for_steps(folder, first, 2)
    first.kill()
    first.wait(10)
    assert_nothing_left(folder, shared_memory)
    assert ask(folder, "PRAGMA integrity_check") == [("ok",)]
    finished = {row[0] for row in ask(folder, "SELECT id FROM rollouts WHERE state = 'succeeded'")}
    assert finished

    second = start(folder)
    wait_for_steps(folder, second, 4)
    second.send_signal(signal.SIGINT)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 130, output
    assert "goes on from the last step" in output
    assert "Traceback" not in output
    assert_nothing_left(folder, shared_memory)

    done = steps_saved(folder)
    third = start(folder)
    output, _ = third.communicate(timeout=240)
    assert third.returncode == 0, output
    assert f"resuming after step {done}" in output
    assert_nothing_left(folder, shared_memory)

    figures = json.loads((folder / "figures.json").read_text())
    assert figures["steps"] == STEPS
    assert 0 <= figures["success_before"] <= 1
    assert 0 <= figures["success_after"] <= 1
    assert figures["max_logprob_mismatch"] < 1e-3
    assert figures["trainable_calls_missing"] == 0
    assert set(figures["calls_by_role"]) == {"analyst", "coder", "reviewer"}
    steps = [row[0] for row in ask(folder, "SELECT step FROM metrics WHERE stage = 'train' ORDER BY step")]
    assert steps == list(range(1, STEPS + 1))
    assert finished <= {row[0] for row in ask(folder, "SELECT id FROM rollouts WHERE state = 'succeeded'")}
    tests = ask(folder, "SELECT count(*) FROM rollouts WHERE mode = 'test' AND state = 'succeeded'")
    assert tests == [(2 * 2 * 16,)]
    assert (folder / "work" / "policies" / "team" / "model.safetensors").is_file()

    again = start(folder)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert "finished already" in output
