"""What the loop does at the guard's word: tells it, goes back, ends the run, and goes on from the good version when it is asked to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from scripted_backend import ScriptedBackend

import coterie
from coterie.errors import ConfigError, StoppedByGuardError
from coterie.interfaces import PolicyUpdate, TrainingRow
from coterie.vocabulary import Run, RunState
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop

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

def strict(task, episode):
    return 0.0 if task.id.startswith("train") else 1.0

def fails(task, episode):
    raise KeyError("no answer")

def wrong(task):
    return 0.0
"""


class Broken(ScriptedBackend):
    """Its gradient is no number from the update ``broken_from`` on."""

    def __init__(self, model: Any, broken_from: int) -> None:
        super().__init__(model)
        self.broken_from = broken_from

    async def update(self, policy: str, rows: Sequence[TrainingRow], *, temperature: float = 1.0) -> PolicyUpdate:
        update = await super().update(policy, rows, temperature=temperature)
        broken = len(self.updates) >= self.broken_from
        return replace(update, metrics={**update.metrics, "grad_norm": math.nan}) if broken else update


def settings(guard: Any = None, every: int = 1) -> TrainConfig:
    return small_config(
        training={"steps": 4},
        evaluation={"every": every},
        runner={"concurrency": 1},
        guard={"validation": {"stop": None}} if guard is None else guard,
    )


async def train(folder: Path, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> Run:
    monkeypatch.setattr(loop, "make_backend", lambda *_: backend)
    training = loop.train("app.py:team", config, folder=folder, work=folder / "work", progress=Told())
    return await asyncio.wait_for(training, 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "work" / "checkpoints").iterdir()}


async def test_a_stopped_run_goes_on_from_its_last_good_version(folder, model, monkeypatch):
    backend = Broken(model, broken_from=3)
    with pytest.raises(StoppedByGuardError, match=r"after step 3: the policy: the gradient's norm is no finite number"):
        await train(folder, backend, monkeypatch, settings())
    assert backend.loaded == ["step-000002"]
    assert backend.closed == 1
    assert {"step-000002", "rejected-000003"} <= checkpoints(folder)
    assert "step-000003" not in checkpoints(folder)
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        (run,) = (await store.list_runs()).items
        assert run.state is RunState.STOPPED
        assert [each.kind for each in await store.get_decisions(run.id)] == ["rolled_back", "stopped"]
        (row,) = await store.get_metrics(run.id, stage="guard")
        assert dict(row.values) == {
            "level": "stop",
            "gradient, the policy": "the gradient's norm is no finite number",
        }
        assert (await store.get_resource("endpoint/team")).content["version"] == backend.version

    healthy = ScriptedBackend(model)
    other_limits = settings({"validation": None, "gradient": {"stop": 50}})
    finished = await train(folder, healthy, monkeypatch, other_limits)
    assert (finished.id, finished.state) == (run.id, RunState.SUCCEEDED)
    assert healthy.loaded[0] == "step-000002"
    assert len(healthy.updates) == 2


async def test_without_a_good_look_it_is_what_the_run_began_with(folder, model, monkeypatch):
    backend = Broken(model, broken_from=2)
    with pytest.raises(StoppedByGuardError, match="The policies are those of step 0 again"):
        await train(folder, backend, monkeypatch, settings(every=4))
    healthy = ScriptedBackend(model)
    assert (await train(folder, healthy, monkeypatch, settings(every=4))).state is RunState.SUCCEEDED
    assert healthy.loaded[0] == "step-000000"
    assert len(healthy.updates) == 4


async def test_without_a_guard_nothing_is_watched(folder, model, monkeypatch):
    config = settings().model_copy(update={"guard": None})
    backend = Broken(model, broken_from=2)
    assert (await train(folder, backend, monkeypatch, config)).state is RunState.SUCCEEDED
    assert "step-000000" not in checkpoints(folder)


async def test_a_held_out_verifier_that_never_agrees_stops_the_run(folder, model, monkeypatch):
    # Half the rollouts are paid, none of the training ones is confirmed; six rollouts a step are a wide margin of error.
    limits = {"verifier": "app.py:strict", "verifier_gap": {"warn": 0.01, "stop": 0.02, "steps": 1}, "validation": None}
    with pytest.raises(StoppedByGuardError, match=r"the held-out verifier confirms 0 of a mean reward of 0\.5"):
        await train(folder, ScriptedBackend(model), monkeypatch, settings(limits))


async def test_a_verifier_that_raises_is_said_once_and_stops_nothing(folder, model, monkeypatch):
    monkeypatch.setattr(loop, "make_backend", lambda *_: ScriptedBackend(model))
    told = Told()
    config = settings({"verifier": "app.py:fails", "validation": None})
    run = await asyncio.wait_for(
        loop.train("app.py:team", config, folder=folder, work=folder / "work", progress=told), 100
    )
    assert run.state is RunState.SUCCEEDED
    (warning,) = [each for each in told.warnings if "verifier" in each]
    assert "failed on 6 rollouts" in warning
    assert "KeyError: 'no answer'" in warning


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        ("app.py:nothing", r"guard\.verifier: 'app\.py:nothing': there is no 'nothing'"),
        ("absent.py:strict", r"guard\.verifier: 'absent\.py:strict': there is no file"),
        ("app.py:wrong", r"guard\.verifier: app\.py:wrong must take two arguments, the task and the episode"),
    ],
)
async def test_a_verifier_that_does_not_load_is_refused_before_any_work(folder, model, monkeypatch, verifier, message):
    with pytest.raises(ConfigError, match=message):
        await train(folder, ScriptedBackend(model), monkeypatch, settings({"verifier": verifier}))
    assert not (folder / "work").exists()
