"""What a step learns from: groups added until enough teach, cut answers, failed rollouts, and what critics say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from scripted_backend import ScriptedBackend

import coterie
from coterie.errors import ConfigError
from coterie.interfaces import TrainingRow
from coterie.testing import Reply, ScriptedModel
from coterie.vocabulary import Metrics, Mode, Run
from coterie_trainers import advantages
from coterie_trainers.config import Critic
from coterie_trainers.loop import run as loop_run
from coterie_trainers.loop.valuing import check_critic

APP = """
import itertools
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)
flip = itertools.count()

async def ask(task):
    with coterie.agent("solver"):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])

@coterie.rollout
async def team(task):
    await ask(task)
    return float(next(flip) % 2)

@coterie.rollout
async def only_one_task_teaches(task):
    await ask(task)
    return float(next(flip) % 2) if task.input == 0 else 1.0

@coterie.rollout
async def every_other_fails(task, mode):
    await ask(task)
    if mode == "train" and next(flip) % 2:
        raise ValueError("no such column")
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


async def step(
    folder: Path, app: str, model: ScriptedModel, patch: pytest.MonkeyPatch, *, training: Any = None, **settings: Any
) -> tuple[ScriptedBackend, Metrics, int]:
    """One training step; gives the backend, the step's figures, and how many rollouts were made for it."""
    backend = ScriptedBackend(model)
    patch.setattr(loop_run, "make_backend", lambda *_: backend)
    config = small_config(
        training={"steps": 1, **(training or {})},
        evaluation={"every": 1},
        runner={"concurrency": 1, "deadline_seconds": 20},
        **settings,
    )
    run: Run = await asyncio.wait_for(
        loop_run.train(f"app.py:{app}", config, folder=folder, work=folder / "work", progress=Told()), 150
    )
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        (figures,) = await store.get_metrics(run.id, stage="train")
        made = len((await store.list_rollouts(mode=Mode.TRAIN)).items)
    return backend, figures, made


def rows_of(backend: ScriptedBackend) -> Sequence[TrainingRow]:
    return [row for rows in backend.updates for row in rows]


async def test_tasks_are_added_until_enough_teach(folder, model, monkeypatch):
    training = {"tasks_per_step": 1, "extra_tasks": 2}
    _, figures, made = await step(folder, "only_one_task_teaches", model, monkeypatch, training=training)
    assert figures.values["teaching_tasks"] == 1
    assert made == 2 * (1 + figures.values["extra_tasks"])
    assert figures.values["rollouts"] == made


async def test_no_more_tasks_are_added_than_allowed(folder, model, monkeypatch):
    training = {"tasks_per_step": 2, "extra_tasks": 1}
    _, figures, made = await step(folder, "only_one_task_teaches", model, monkeypatch, training=training)
    assert (figures.values["extra_tasks"], made) == (1, 2 * 3)
    assert figures.values["teaching_tasks"] == 1


async def test_failed_rollouts_teach_what_the_configuration_says(folder, model, monkeypatch):
    unfinished = {"rollouts": "penalise", "rollout_reward": -1.0}
    backend, figures, _ = await step(folder, "every_other_fails", model, monkeypatch, unfinished=unfinished)
    assert figures.values["failed"] == 3
    signs = Counter(row.advantages[0] > 0 for row in rows_of(backend))
    assert signs == {True: 3, False: 3}


async def test_failed_rollouts_are_left_out_by_default_and_counted(folder, model, monkeypatch):
    backend, figures, _ = await step(folder, "every_other_fails", model, monkeypatch)
    assert rows_of(backend) == []
    assert (figures.values["failed"], figures.values["calls"]) == (3, 3)


@pytest.mark.parametrize(
    ("unfinished", "rows", "masked"),
    [({}, 6, 0), ({"answers": "mask"}, 0, 6), ({"answers": "penalise", "answer_penalty": 0.5}, 6, 0)],
    ids=str,
)
async def test_cut_answers_are_counted_and_teach_what_the_configuration_says(
    folder, monkeypatch, unfinished, rows, masked
):
    with ScriptedModel(lambda _: Reply("fine", finish_reason="length")) as model:
        backend, figures, _ = await step(folder, "team", model, monkeypatch, unfinished=unfinished)
    assert (len(rows_of(backend)), figures.values["masked"], figures.values["cut"]) == (rows, masked, 6)


async def test_token_level_advantages_are_left_to_the_trainer(folder, model, monkeypatch):
    backend, *_ = await step(folder, "team", model, monkeypatch, credit={"advantage": "gae"}, critic={})
    rows = rows_of(backend)
    assert Counter(row.rewards[-1] for row in rows if row.rewards) == {0.0: 3, 1.0: 3}
    assert all(not any(row.advantages) and row.returns is None for row in rows)
    assert backend.judged == []


async def test_turn_gae_asks_the_critic_and_teaches_it(folder, model, monkeypatch):
    backend, *_ = await step(folder, "team", model, monkeypatch, credit={"advantage": "turn_gae"}, critic={})
    (asked,) = backend.judged
    assert all(len(row.response_ids) == 1 for row in asked)
    rows = rows_of(backend)
    # One turn a rollout: its return is its reward, and the critic said 0.5 throughout.
    assert Counter(row.returns[0] for row in rows if row.returns) == {0.0: 3, 1.0: 3}
    assert all(not any(row.returns[1:]) for row in rows if row.returns)
    assert all((row.advantages[0] > 0) == (row.returns[0] == 1.0) for row in rows if row.returns)


def test_a_critic_and_who_asks_it_go_together():
    with pytest.raises(ConfigError, match="'turn_gae' needs a critic"):
        check_critic(None, advantages.check("turn_gae"))
    with pytest.raises(ConfigError, match="'gae' needs a critic"):
        check_critic(None, advantages.check("gae"))
    with pytest.raises(ConfigError, match=r"no estimator asks it; credit\.advantage is 'role'"):
        check_critic(Critic(), advantages.check("role"))
    check_critic(Critic(), advantages.check({"coder": "turn_gae", "reviewer": "role"}))
    with pytest.raises(ConfigError, match="'gae' makes advantages by token"):
        advantages.check({"coder": "gae", "reviewer": "role"})
