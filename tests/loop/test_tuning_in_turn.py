"""Prompts and weights in turn: searches between training steps, with a team whose scripted model answers by what the prompts say."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from scripted_backend import ScriptedBackend

import coterie
from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, ResourceStatus, Rollout, Run, RunState
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop_run
from coterie_trainers.prompts import optimisers
from coterie_trainers.prompts.study import Candidate, Study

pytestmark = pytest.mark.timeout(240)
LESSON = "Add the unit."
APP = """
import itertools
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=10)
flip = itertools.count()

@coterie.rollout
async def team(task):
    with coterie.agent("solver"):
        messages = [{"role": "system", "content": "Solve it."}, {"role": "user", "content": str(task.input)}]
        answer = await client.chat.completions.create(model="m", messages=messages)
    coterie.reward(next(flip) % 2, role="solver")
    return float(answer.choices[0].message.content)
"""


def answer(body: Mapping[str, Any]) -> str:
    """The solver is right if its prompt holds the lesson. The reflecting model names the lesson when it sees a failure."""
    if body["model"] != "reflector":
        return str(float(LESSON in body["messages"][0]["content"]))
    asked = body["messages"][0]["content"]
    current = re.search(r"<current>\n(.*?)\n</current>", asked, re.DOTALL)
    assert current
    return f"<prompt>{current[1]} {LESSON}</prompt>" if "score is 0" in asked else "<prompt>Solve it!</prompt>"


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


def config(base_url: str, *, steps: int = 3, every: int = 2, prompts: Mapping[str, Any] | None = None) -> TrainConfig:
    return small_config(
        training={"steps": steps},
        evaluation={"every": 1},
        runner={"concurrency": 4, "deadline_seconds": 30},
        guard=None,
        prompts={
            "every": every,
            "optimiser": {"apo": {"beam": 1, "branch": 1, "rounds": 1}},
            "reflection": {"base_url": base_url, "model": "reflector", "retries": 0},
            "budget": {"rollouts": 40},
            "selection": {"gate": "none"},
            **(prompts or {}),
        },
    )


async def train(folder: Path, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, settings: TrainConfig) -> Run:
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: backend)
    running = loop_run.train("app.py:team", settings, folder=folder, work=folder / "work", progress=Told())
    return await asyncio.wait_for(running, 200)


async def rollouts_of(store: Store, run_id: str, mode: Mode | None = None) -> list[Rollout]:
    found: list[Rollout] = []
    cursor = None
    while True:
        page = await store.list_rollouts(run_id=run_id, mode=mode, after=cursor)
        found += page.items
        if page.cursor is None:
            return found
        cursor = page.cursor


async def test_the_winner_of_a_search_is_played_in_the_steps_after_it(folder, model, monkeypatch):
    backend = ScriptedBackend(model)
    run = await train(folder, backend, monkeypatch, config(model.base_url))
    assert run.state is RunState.SUCCEEDED
    assert len(backend.updates) == 3
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        solver = await store.get_resource("solver")
        assert solver.content["text"] == f"Solve it. {LESSON}"
        assert solver.author == "optimiser:apo"
        trained = await rollouts_of(store, run.id, Mode.TRAIN)
        assert {(each.step, each.resources.get("solver")) for each in trained} == {
            (n, solver.version) for n in (1, 2, 3)
        }
        tests = await rollouts_of(store, run.id, Mode.TEST)
        pinned = {(each.metadata["evaluation"], each.resources.get("solver")) for each in tests}
        assert pinned == {("before", None), ("after", solver.version)}
        decisions = await store.get_decisions(run.id)
        told = [(each.kind, each.subject.partition(", run")[0]) for each in decisions]
        assert told[:2] == [("promoted", "prompts solver before step 1"), ("kept", "prompts solver before step 3")]
        assert decisions[0].evidence["val_gain"]["value"] == 1.0
        rows = await store.get_metrics(run.id, stage="prompts")
        assert [(row.step, row.values["score_before"], row.values["score"]) for row in rows] == [
            (1, 0, 1),
            (3, 1, 1),
        ]


async def test_a_search_plays_the_weights_of_its_time_and_no_test_task(folder, model, monkeypatch):
    run = await train(folder, ScriptedBackend(model), monkeypatch, config(model.base_url))
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        versions = []
        for step in (1, 3):
            played = await rollouts_of(store, f"{run.id}-prompts-{step:06d}")
            assert {each.task_id.partition("-")[0] for each in played} <= {"train", "val"}
            (endpoint,) = {each.resources["endpoint/team"] for each in played}
            versions.append((await store.get_resource("endpoint/team", endpoint)).content["version"])
        assert versions == [0, 2]


async def test_a_search_that_is_cut_off_goes_on_where_it_was(folder, model, monkeypatch):
    """The same team twice: once left alone, once cancelled when the reflecting model is asked for an edit."""
    alone = write_project(_made(folder / "alone"), APP)
    await train(alone, ScriptedBackend(model), monkeypatch, config(model.base_url))
    expected = await _texts(alone)

    cut = threading.Event()

    async def hangs_up(body: Mapping[str, Any]) -> Any:
        if body["model"] == "reflector" and "criticised" in body["messages"][0]["content"]:
            cut.set()
            await asyncio.sleep(0.2)
        return answer(body)

    with ScriptedModel(hangs_up) as slow:
        running = asyncio.create_task(train(folder, ScriptedBackend(slow), monkeypatch, config(slow.base_url)))
        await asyncio.to_thread(cut.wait, 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()
        asked = _asked(slow)
        run = await train(folder, ScriptedBackend(slow), monkeypatch, config(slow.base_url))
        # Of the two questions of the first search the first was answered before.
        assert _asked(slow) - asked <= _asked(model) - 1
    assert run.state is RunState.SUCCEEDED
    assert await _texts(folder) == expected


async def test_a_run_that_goes_on_does_not_search_again(folder, model, monkeypatch):
    settings = config(model.base_url)
    with pytest.raises(RuntimeError, match="the trainer is gone"):
        await train(folder, ScriptedBackend(model, fail_at=2), monkeypatch, settings)
    asked = _asked(model)
    assert asked
    run = await train(folder, ScriptedBackend(model), monkeypatch, config(model.base_url))
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        trained = await rollouts_of(store, run.id, Mode.TRAIN)
        assert len({each.resources["solver"] for each in trained}) == 1
        played = await rollouts_of(store, f"{run.id}-prompts-000001")
        assert len(played) == len({each.id for each in played}) <= 40
        kinds = [each.subject.partition(" before")[0] for each in await store.get_decisions(run.id)]
        assert kinds.count("prompts solver") == 2


async def test_the_result_is_weights_and_prompts_of_the_same_step(folder, model, monkeypatch):
    """Each search finds a prompt that is better then, but with the second one the team does worse when it is looked at."""

    def numbered(body: Mapping[str, Any]) -> str:
        number = int((re.search(r"v(\d)", body["messages"][0]["content"]) or ["", "0"])[1])
        in_a_search = "seed" in body
        return str(number / 4 if in_a_search else float(number == 1))

    async def next_number(study: Study) -> Sequence[Candidate]:
        number = int((re.search(r"v(\d)", study.seed.texts["solver"]) or ["", "0"])[1])
        return [Candidate({"solver": f"v{number + 1}"}, parents=(study.seed.id,), author="optimiser:numbered")]

    monkeypatch.setattr(optimisers, "get", lambda *_: next_number)
    with ScriptedModel(numbered) as served:
        run = await train(folder, ScriptedBackend(served), monkeypatch, config(served.base_url, steps=2, every=1))
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        trained = await rollouts_of(store, run.id, Mode.TRAIN)
        texts = {each.step: await _text(store, each.resources["solver"]) for each in trained}
        assert texts == {1: "v1", 2: "v2"}
        assert [each.subject for each in await store.get_decisions(run.id)][-1] == "policy team of step 1"
        active = await store.get_resource("solver")
        assert active.content["text"] == "v1"
        (later,) = [each for each in await store.list_resources(name="solver") if each.content["text"] == "v2"]
        assert later.status is ResourceStatus.RETIRED
        after = [each for each in await rollouts_of(store, run.id, Mode.TEST) if each.metadata["evaluation"] == "after"]
        assert {each.resources["solver"] for each in after} == {active.version}


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ({"optimiser": "apoo"}, "no optimiser 'apoo'"),
        ({"optimiser": {"apo": {"beams": 1}}}, "unknown key 'beams'"),
        ({"budget": {"rollouts": 6}}, "leaves nothing for the search"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_is_started(folder, model, monkeypatch, prompts, told):
    backend = ScriptedBackend(model)
    with pytest.raises(ConfigError, match=told):
        await train(folder, backend, monkeypatch, config(model.base_url, prompts=prompts))
    assert not model.requests


def test_the_test_split_is_for_the_end_of_the_run(model):
    with pytest.raises(ValueError, match="the test split is for its end"):
        config(model.base_url, prompts={"selection": {"gate": "test"}})
    assert config(model.base_url, prompts={"selection": {"samples": 2}}).prompts.selection.gate == "val"


def _asked(model: ScriptedModel) -> int:
    return sum(request.body["model"] == "reflector" for request in model.requests)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def _texts(folder: Path) -> list[tuple[str, ResourceStatus]]:
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        return [(each.content["text"], each.status) for each in await store.list_resources(name="solver")]


async def _text(store: Store, version: int) -> str:
    return str((await store.get_resource("solver", version)).content["text"])
