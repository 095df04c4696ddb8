"""Asynchronous collection in the loop: a scripted model, rollouts of unequal length, a real store and runner."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from pydantic import ValidationError
from scripted_backend import ScriptedBackend

import coterie
from coterie.conventions import HEADER_POLICY_VERSION
from coterie.testing import Reply, ScriptedModel
from coterie.vocabulary import Metrics, Mode, Rollout, RolloutState, Run, RunState
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop_run

APP = """
import asyncio, itertools, random
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=30)
made = itertools.count()

async def ask(task):
    with coterie.agent("solver"):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])

@coterie.rollout
async def uneven(task, mode):
    number = next(made)
    await ask(task)
    if mode == "train":
        await asyncio.sleep(0.5 if number % 7 == 0 else 0.0)
        await ask(task)
    return random.random()  # no two are equal: every group has something to teach
"""


class VersionedBackend(ScriptedBackend):
    """Its model says in each answer which version gave it, as a model server does."""

    async def update(self, policy: str, rows: Any, *, temperature: float = 1.0) -> Any:
        await asyncio.sleep(0.05)
        return await super().update(policy, rows, temperature=temperature)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


@pytest.fixture
def backend() -> Iterator[VersionedBackend]:
    def answer(request: Any) -> Reply:
        return Reply("fine", headers={HEADER_POLICY_VERSION: str(backend.version)})

    with ScriptedModel(answer) as model:
        backend = VersionedBackend(model)
        yield backend


def config(**training: Any) -> TrainConfig:
    settings = {"collection": "async", "steps": 6, "tasks_per_step": 2, "max_staleness": 2} | training
    return small_config(
        training=settings,
        evaluation={"every": 100, "test_samples": 1},
        runner={"concurrency": 6, "deadline_seconds": 30},
    )


async def train(folder: Path, backend: ScriptedBackend, settings: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: backend)
    return await asyncio.wait_for(
        loop_run.train("app.py:uneven", settings, folder=folder, work=folder / "work", progress=Told()), 120
    )


async def left_in_store(folder: Path, run: Run) -> tuple[list[Metrics], list[Rollout]]:
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        rows = await store.get_metrics(run.id, stage="train")
        return list(rows), list((await store.list_rollouts(mode=Mode.TRAIN)).items)


def trained_rollouts(backend: ScriptedBackend) -> Counter[str]:
    """Rollout → in how many updates it was."""
    return Counter(id_ for rows in backend.updates for id_ in {row.rollout_id for row in rows})


@pytest.mark.parametrize(
    ("loss", "corrects"),
    [
        ({}, True),
        ({"mode": "gspo"}, True),
        ({"mode": "gpg"}, False),
        ({"mode": "gpg", "correction": {"weights": "token"}}, True),
        ({"correction": {"proximal": "actor"}}, False),
        ({"correction": {"proximal": "actor", "weights": "sequence"}}, True),
    ],
)
def test_a_loss_that_takes_stale_turns_for_fresh_ones_is_refused(loss, corrects):
    def settings(**training: Any) -> TrainConfig:
        return small_config(training=training, evaluation={}, runner={}, loss=loss)

    assert settings().loss.corrects_stale_turns is corrects
    assert settings(collection="async", stale_turns="uncorrected")
    if corrects:
        assert settings(collection="async")
    else:
        with pytest.raises(ValidationError, match=r"older policy versions.*Set loss\.correction\.weights: token"):
            settings(collection="async")


async def test_rollouts_carry_over_and_each_is_trained_once(folder, backend, monkeypatch):
    run = await train(folder, backend, config(), monkeypatch)
    rows, rollouts = await left_in_store(folder, run)
    assert [row.values["rollouts"] for row in rows] == [4.0] * 6
    assert {rollout.state for rollout in rollouts} == {RolloutState.SUCCEEDED}
    assert len(rollouts) == 6 * 2 * 2  # as many as synchronously: nothing is played in vain
    assert sum(row.values["groups_carried_over"] for row in rows) > 0
    assert set(trained_rollouts(backend).values()) == {1}
    assert max(row.values["staleness_max"] for row in rows) in (1, 2)
    assert rows[0].values["role/solver/staleness_max"] == 0


async def test_both_ways_draw_the_same_groups(folder, backend, monkeypatch):
    draws = []
    for way in ("sync", "async"):
        (folder / way).mkdir()
        write_project(folder / way, APP)
        run = await train(folder / way, backend, config(collection=way), monkeypatch)
        _, rollouts = await left_in_store(folder / way, run)
        draws.append(Counter(rollout.group_id.split("/", 1)[1] for rollout in rollouts))
    assert draws[0] == draws[1]


@pytest.mark.parametrize(("killed", "fail_at", "checkpoint_every"), [(False, 4, 2), (True, 5, 2), (True, 2, 1)])
async def test_a_run_that_was_cut_off_counts_nothing_twice(
    folder, backend, monkeypatch, killed, fail_at, checkpoint_every
):
    backend.fail_at = fail_at
    settings = config(checkpoint_every=checkpoint_every)
    with monkeypatch.context() as dying:
        if killed:
            dying.setattr(loop_run, "_stop", nothing_more)
        with pytest.raises(RuntimeError, match="the trainer is gone"):
            await train(folder, backend, settings, monkeypatch)
    saved = (fail_at - 1) // checkpoint_every * checkpoint_every
    counted = backend.updates[:saved]
    backend.updates, backend.fail_at = [], None
    run = await train(folder, backend, settings, monkeypatch)
    assert run.state is RunState.SUCCEEDED
    assert backend.loaded[0] == f"step-{saved:06d}"
    rows, rollouts = await left_in_store(folder, run)
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    group_of = {rollout.id: rollout.group_id for rollout in rollouts}
    trained = Counter(
        group for rows in [*counted, *backend.updates] for group in {group_of[row.rollout_id] for row in rows}
    )
    assert set(trained.values()) == {1}
    assert {rollout.state for rollout in rollouts} <= {RolloutState.SUCCEEDED, RolloutState.CANCELLED}
    assert len({rollout.group_id for rollout in rollouts}) == 6 * 2


async def nothing_more(*_: object) -> None:
    """What a process does that was killed."""


async def test_training_that_ends_early_leaves_nothing_in_flight(folder, backend, monkeypatch):
    run = await train(folder, backend, config(steps=50, max_seconds=0.5), monkeypatch)
    rows, rollouts = await left_in_store(folder, run)
    assert len(rows) < 50
    assert not [rollout for rollout in rollouts if not rollout.state.terminal]
    trained = {id_ for rows in backend.updates for id_ in {row.rollout_id for row in rows}}
    assert trained.isdisjoint({rollout.id for rollout in rollouts if rollout.state is RolloutState.CANCELLED})
