"""The loop against faults: a scripted model behind a real socket, a real store, a real runner; no weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from scripted_backend import ScriptedBackend

import coterie
from coterie.errors import ConfigError, NothingToTrainError
from coterie.testing import Fault, Reply, ScriptedModel
from coterie.vocabulary import AttemptState, FailureCause, Mode, RolloutState, Run, RunState
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop_run

APP = """
import asyncio, itertools, time
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)
flip = itertools.count()

async def ask(task):
    with coterie.agent("solver"):
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])
    return answer.choices[0].message.content

@coterie.rollout
async def team(task):
    await ask(task)
    return float(next(flip) % 2)

looks = itertools.chain([1.0] * 3, itertools.repeat(0.0))

@coterie.rollout
async def worse_after_the_first_look(task, mode):
    await ask(task)
    return next(looks) if mode == "val" else float(next(flip) % 2)

@coterie.rollout
async def equal(task):
    await ask(task)
    return 1.0

@coterie.rollout
async def silent(task):
    return float(next(flip) % 2)

@coterie.rollout
async def raises(task):
    await ask(task)
    if task.input == 1:
        raise ValueError("no such column")
    return float(next(flip) % 2)

@coterie.rollout
async def wrong(task):
    await ask(task)
    return float("nan") if task.input == 1 else "good" if task.input == 2 else float(next(flip) % 2)

@coterie.rollout
async def hangs(task):
    await ask(task)
    if task.input == 1:
        await asyncio.sleep(60)
    return float(next(flip) % 2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


def config(**training: Any) -> TrainConfig:
    return small_config(training=training, evaluation={"every": 1}, runner={"concurrency": 1, "deadline_seconds": 2})


def unguarded(**training: Any) -> TrainConfig:
    return config(**training).model_copy(update={"guard": None})


async def run_loop(
    folder: Path,
    app: str,
    backend: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    settings: TrainConfig | None = None,
) -> Run:
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: backend)
    return await asyncio.wait_for(
        loop_run.train(f"app.py:{app}", settings or config(), folder=folder, work=folder / "work", progress=Told()), 60
    )


async def ended(folder: Path, mode: Mode = Mode.TRAIN) -> tuple[list[Any], list[Any]]:
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        rollouts = list((await store.list_rollouts(mode=mode)).items)
        attempts = await store.get_attempts([rollout.id for rollout in rollouts])
    return rollouts, [attempt for each in attempts.values() for attempt in each]


async def test_a_run_leaves_everything_in_the_store(folder, model, monkeypatch):
    backend = ScriptedBackend(model)
    run = await run_loop(folder, "team", backend, monkeypatch)
    assert run.state is RunState.SUCCEEDED
    assert len(backend.updates) == 2
    assert backend.closed == 1
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        assert [row.step for row in await store.get_metrics(run.id, stage="train")] == [1, 2]
        assert [row.step for row in await store.get_metrics(run.id, stage="val")] == [1, 2]
        tests = (await store.list_rollouts(mode=Mode.TEST)).items
        labels = {(each.metadata["evaluation"], each.metadata["decoding"]) for each in tests}
        assert labels == {(when, how) for when in ("before", "after") for how in ("sampled", "greedy")}
        assert len(tests) == 4 * 3
        assert [each.kind for each in await store.get_decisions(run.id)] == ["promoted"]
        assert (await store.get_resource("endpoint/team")).version >= 3
    assert (folder / "work" / "policies" / "team").is_dir()


async def test_greedy_rollouts_are_sent_with_temperature_zero(folder, model, monkeypatch):
    await run_loop(folder, "team", ScriptedBackend(model), monkeypatch)
    asked = [request.body.get("temperature") for request in model.requests]
    assert asked.count(0) + asked.count(0.0) == 6 * 2 or asked.count(0.0) == 6


async def test_a_finished_run_is_not_run_again(folder, model, monkeypatch):
    first = await run_loop(folder, "team", ScriptedBackend(model), monkeypatch)
    count = len(model.requests)
    again = await run_loop(folder, "team", ScriptedBackend(model), monkeypatch)
    assert again.id == first.id
    assert len(model.requests) == count


async def test_a_run_that_failed_goes_on_from_its_last_step(folder, model, monkeypatch):
    settings = config(steps=4)
    with pytest.raises(RuntimeError, match="the trainer is gone"):
        await run_loop(folder, "team", ScriptedBackend(model, fail_at=3), monkeypatch, settings)
    backend = ScriptedBackend(model)
    run = await run_loop(folder, "team", backend, monkeypatch, settings)
    assert run.state is RunState.SUCCEEDED
    assert backend.loaded[0] == "step-000002"
    assert len(backend.updates) == 2
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        assert [row.step for row in await store.get_metrics(run.id, stage="train")] == [1, 2, 3, 4]
        tests = (await store.list_rollouts(mode=Mode.TEST)).items
        assert len(tests) == 4 * 3
        states = {rollout.state for rollout in (await store.list_rollouts(mode=Mode.TRAIN)).items}
        assert states <= {RolloutState.SUCCEEDED, RolloutState.CANCELLED}


async def test_the_best_checkpoint_on_validation_is_promoted_and_its_version_told(folder, model, monkeypatch):
    backend = ScriptedBackend(model)
    run = await run_loop(folder, "worse_after_the_first_look", backend, monkeypatch, unguarded(steps=3))
    assert backend.loaded == ["step-000001"]
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        (decision,) = await store.get_decisions(run.id)
        assert decision.subject == "policy team of step 1"
        assert (await store.get_resource("endpoint/team")).content["version"] == backend.version


async def test_two_runs_share_one_store(folder, model, monkeypatch):
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: ScriptedBackend(model))
    runs = []
    for name in ("one", "two"):
        settings = config(steps=1).model_copy(update={"name": name, "store": str(folder / "shared.db")})
        for _ in range(2):
            run = await loop_run.train("app.py:team", settings, folder=folder, work=folder / name, progress=Told())
            runs.append(run.id)
    assert runs[0] == runs[1] != runs[2] == runs[3]


async def test_other_settings_do_not_resume_a_run(folder, model, monkeypatch):
    await run_loop(folder, "team", ScriptedBackend(model), monkeypatch)
    with pytest.raises(ConfigError, match=r"settings for: training\.balance\..*--fresh"):
        await run_loop(folder, "team", ScriptedBackend(model), monkeypatch, config(balance="family"))


@pytest.mark.parametrize(
    ("app", "answer", "token_ids", "told"),
    [
        ("equal", "fine", True, "same reward"),
        ("silent", "fine", True, "no LLM call was seen"),
        ("team", "fine", False, "token ids"),
    ],
)
async def test_steps_without_a_usable_group_end_the_run_with_the_cause(
    folder, monkeypatch, app, answer, token_ids, told
):
    with ScriptedModel(lambda request: answer) as model:
        backend = ScriptedBackend(model, token_ids=token_ids)
        with pytest.raises(NothingToTrainError, match=told):
            await run_loop(folder, app, backend, monkeypatch, config(steps=9, stop_after_empty_steps=2))
        assert backend.updates == []
        assert backend.closed == 1


@pytest.mark.parametrize(
    ("app", "causes"),
    [
        ("raises", {FailureCause.ERROR}),
        ("wrong", {FailureCause.BAD_REWARD}),
        ("hangs", {FailureCause.DEADLINE}),
    ],
)
async def test_failed_attempts_are_recorded_and_the_run_goes_on(folder, model, monkeypatch, app, causes):
    run = await run_loop(folder, app, ScriptedBackend(model), monkeypatch, config(steps=1))
    assert run.state is RunState.SUCCEEDED
    rollouts, attempts = await ended(folder)
    failed = [attempt for attempt in attempts if attempt.state is AttemptState.FAILED]
    assert {attempt.cause for attempt in failed} == causes
    dead = [rollout for rollout in rollouts if rollout.state is RolloutState.DEAD]
    assert len(dead) == len(failed) > 0
    assert all(rollout.reason for rollout in dead)


@pytest.mark.parametrize("fault", [Fault.RUBBISH, Fault.EMPTY, Fault.CUT, Reply("", status=500)])
async def test_a_model_that_fails_half_the_time_fails_attempts_not_the_run(folder, monkeypatch, fault):
    count = iter(range(10_000))
    with ScriptedModel(lambda request: fault if next(count) % 2 else "fine") as model:
        run = await run_loop(folder, "team", ScriptedBackend(model), monkeypatch, config(steps=1, rollouts_per_task=8))
    assert run.state is RunState.SUCCEEDED
    rollouts, _ = await ended(folder)
    states = [rollout.state for rollout in rollouts]
    assert states.count(RolloutState.DEAD) > 0
    assert states.count(RolloutState.SUCCEEDED) > 0


async def test_a_program_whose_client_wants_a_key_trains_without_one(folder, model, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (folder / "app.py").write_text(APP.replace('base_url="http://127.0.0.1:9/v1", api_key="none", ', ""))
    run = await run_loop(folder, "team", ScriptedBackend(model), monkeypatch, config(steps=1))
    assert run.state is RunState.SUCCEEDED


async def test_shapers_of_the_configuration_are_at_work_and_watched(folder, model, monkeypatch):
    """The answers are never of the form, so each call costs; that turns no order around."""
    parts = {"evaluation": {"every": 1}, "runner": {"concurrency": 1, "deadline_seconds": 2}}
    credit = {"range": [0, 1], "shaping": [{"format": {"pattern": "no such answer", "cost": 0.25}}]}
    backend = ScriptedBackend(model)
    run = await run_loop(folder, "team", backend, monkeypatch, small_config(**parts, credit=credit))
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        rows = await store.get_metrics(run.id, stage="train")
    assert [row.values["shaping/format/wrong_order"] for row in rows] == [0, 0]
    wrong = small_config(**parts, credit={"shaping": ["formt"]})
    with pytest.raises(ConfigError, match="no shaper 'formt'"):
        await run_loop(folder, "team", backend, monkeypatch, wrong)
