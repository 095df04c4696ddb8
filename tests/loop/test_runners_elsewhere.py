"""Training whose rollouts are played by ``coterie run`` in processes of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from pydantic import ValidationError
from scripted_backend import ScriptedBackend

import coterie
from coterie.assembly import load_episodes
from coterie.store.sqlite import SqliteStore
from coterie.testing import ScriptedModel
from coterie.vocabulary import AttemptState, FailureCause, Rollout, RolloutState, RunState
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop_run
from coterie_trainers.runners import tries
from coterie_trainers.sections import Runner

APP = """
import itertools, coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", max_retries=0, timeout=5)
flip = itertools.count()

@coterie.rollout
async def team(task):
    with coterie.agent("solver"):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])
    return float(next(flip) % 2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


def config(folder: Path, **runner: Any) -> TrainConfig:
    return small_config(
        evaluation={"every": 2},
        runner={"where": "elsewhere", "deadline_seconds": 20, **runner},
        store=f"sqlite:///{folder / 'team.db'}",
        agents={"solver": "expert"},
    )


def runner_process(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", "from coterie.cli import main; main()", "run", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.Popen(program, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


async def until(found: Any, seconds: float = 60.0) -> Any:
    for _ in range(int(seconds / 0.05)):
        if (value := found()) is not None:
            return value
        await asyncio.sleep(0.05)
    raise AssertionError("not in time")


async def test_the_told_command_plays_the_run(folder: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch):
    """Two runners, started by the very command that the trainer names, without a key of OpenAI's."""
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: ScriptedBackend(model))
    told = Told()
    training = asyncio.create_task(
        loop_run.train("app.py:team", config(folder), folder=folder, work=folder / "work", progress=told)
    )
    command = await until(lambda: next((n for n in told.notes if "coterie run" in n), None) or training.done() or None)
    assert isinstance(command, str), training.exception()
    arguments = command.split("coterie run ")[1].split()
    runners = [runner_process(arguments, folder) for _ in range(2)]
    try:
        run = await asyncio.wait_for(training, 90)
    finally:
        for runner in runners:
            runner.terminate()
        said = [runner.communicate(timeout=30)[0].decode() for runner in runners]
    assert run.state is RunState.SUCCEEDED
    assert [runner.returncode for runner in runners] == [0, 0], said
    async with coterie.connect(folder / "team.db") as store:
        rollouts = (await store.list_rollouts(run_id=run.id)).items
        attempts = await store.get_attempts([rollout.id for rollout in rollouts])
        episodes = await load_episodes(store, [rollout.id for rollout in rollouts])
    assert {rollout.state for rollout in rollouts} == {RolloutState.SUCCEEDED}
    assert {rollout.deadline_seconds for rollout in rollouts} == {20}
    assert all(len(tries) == 1 for tries in attempts.values())
    assert {turn.role for episode in episodes for turn in episode.turns} == {"expert"}


async def test_nobody_comes_is_said(folder: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: ScriptedBackend(model))
    told = Told()
    training = asyncio.create_task(
        loop_run.train(
            "app.py:team", config(folder, patience_seconds=0.2), folder=folder, work=folder / "work", progress=told
        )
    )
    try:
        warning = await until(lambda: next(iter(told.warnings), None))
    finally:
        training.cancel()
        await asyncio.gather(training, return_exceptions=True)
    assert "No runner takes rollouts" in warning
    assert "coterie run app.py:team --store sqlite:///" in warning


def test_a_store_of_its_own_would_not_be_found(folder: Path):
    with pytest.raises(ValidationError, match="store: URL"):
        TrainConfig.model_validate({**config(folder).model_dump(), "store": None})


async def test_a_rollout_may_be_lost_with_its_runner_but_not_fail(tmp_path: Path):
    """Two leases that run out do not use up the one attempt that it has; its own error does."""
    clock = [0]
    async with await SqliteStore.open(tmp_path / "team.db", clock=lambda: clock[0]) as store:
        await store.add_tasks([coterie.Task("t", 1)])
        await store.enqueue([Rollout("t", **tries(Runner(deadline_seconds=5)))])
        for now_ns in (0, 10**12, 2 * 10**12):
            clock[0] = now_ns
            (lease,) = await store.lease("w", lease_seconds=1)
        ended = await store.finish(lease.attempt.id, AttemptState.FAILED, cause=FailureCause.ERROR)
    assert (lease.attempt.number, ended.state) == (3, RolloutState.DEAD)
