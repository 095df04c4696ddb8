"""Several policies in the loop: who is sampled, who learns when, what is refused. A scripted model, no weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from scripted_backend import ScriptedBackend

import coterie
from coterie.assembly import load_episodes
from coterie.errors import ConfigError, MismatchError
from coterie.interfaces import PolicyUpdate, TrainingRow
from coterie.testing import ScriptedModel
from coterie.vocabulary import Endpoint, Mode
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop_run

APP = """
import itertools
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)
flip = itertools.count()

async def ask(role, task):
    with coterie.agent(role):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])

@coterie.rollout
async def team(task):
    for role in ("solver", "critic", "guide", "judge"):
        await ask(role, task)
    return float(next(flip) % 2)

@coterie.rollout
async def one_more(task):
    await ask("solver", task)
    await ask("tester", task)
    return float(next(flip) % 2)

@coterie.rollout
async def solver_alone(task):
    await ask("solver", task)
    return float(next(flip) % 2)
"""
POLICIES = {
    "solver": {"model": "m", "roles": ["solver"]},
    "critic": {"model": "m", "roles": ["critic"], "adapter": {}},
    "guide": {"model": "m", "roles": ["guide"], "frozen": True},
    "judge": {"roles": ["judge"], "hosted": {"base_url": "http://127.0.0.1:9/v1", "model": "big"}},
}


class FourPolicies(ScriptedBackend):
    """Of which two are trained; keeps which were updated."""

    def __init__(self, model: ScriptedModel, **metrics: float) -> None:
        super().__init__(model)
        self.metrics = metrics
        self.learned: list[str] = []
        self.versions = {"solver": 0, "critic": 0}

    async def serve(self) -> Mapping[str, Endpoint]:
        names = {"solver": "solver", "critic": "critic@0", "guide": "guide", "judge": "big"}
        return {
            name: Endpoint(self.model.base_url, model, name, roles=(name,), token_ids=name != "judge")
            for name, model in names.items()
        }

    async def update(self, policy: str, rows: Sequence[TrainingRow], *, temperature: float = 1.0) -> PolicyUpdate:
        assert {row.role for row in rows} == {policy}
        self.learned.append(policy)
        return PolicyUpdate(policy, len(rows), 1, {"loss": 0.0, **self.metrics})

    async def publish(self, policy: str) -> int:
        self.versions[policy] += 1
        return self.versions[policy]

    async def save(self, folder: Path) -> Mapping[str, Any]:
        for policy in self.versions:
            (folder / policy / "model").mkdir(parents=True)
        (folder / "versions.json").write_text(json.dumps(self.versions))
        return {}

    async def load(self, folder: Path) -> Mapping[str, int]:
        self.versions = {name: version + 1 for name, version in self.versions.items()}
        return self.versions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


def config(steps: int = 4, **more: Any) -> TrainConfig:
    training = {"steps": steps, "stop_after_empty_steps": 2}
    return small_config(
        training=training,
        evaluation={"every": 10},
        runner={"concurrency": 1, "deadline_seconds": 30},
        **{"policies": POLICIES, **more},
    )


async def run_loop(
    folder: Path, app: str, backend: FourPolicies, monkeypatch: pytest.MonkeyPatch, settings: TrainConfig
) -> Told:
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: backend)
    told = Told()
    arguments = {"folder": folder, "work": folder / "work", "progress": told}
    await asyncio.wait_for(loop_run.train(f"app.py:{app}", settings, **arguments), 110)
    return told


async def test_policies_learn_in_turn_and_every_call_names_its_policy_version_and_model(folder, model, monkeypatch):
    backend = FourPolicies(model)
    told = await run_loop(folder, "team", backend, monkeypatch, config(updates={"order": "alternate"}))
    assert backend.learned == ["solver", "critic", "solver", "critic"]
    assert told.warnings == []
    assert sorted(path.name for path in (folder / "work" / "policies").iterdir()) == ["critic", "solver"]

    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        rollouts = (await store.list_rollouts(mode=Mode.TRAIN)).items
        episodes = {each.rollout_id: each for each in await load_episodes(store, [each.id for each in rollouts])}
        metrics = (await store.get_metrics(rollouts[0].run_id, stage="train"))[0].values
    assert metrics["rows"] == 6
    assert "solver/loss" in metrics
    last = next(rollout for rollout in rollouts if rollout.step == 4)
    answered = {turn.role: (turn.policy, turn.policy_version) for turn in episodes[last.id].turns}
    assert answered == {"solver": ("solver", 2), "critic": ("critic", 1), "guide": ("guide", 0), "judge": ("judge", 0)}
    asked = {request.body["model"] for request in model.requests}
    assert asked == {"solver", "critic@0", "critic@1", "critic@2", "guide", "big"}


async def test_a_schedule_says_who_learns(folder, model, monkeypatch):
    backend = FourPolicies(model)
    stages = [{"policies": ["critic"], "steps": 2}, {"policies": ["solver", "critic"]}]
    await run_loop(folder, "team", backend, monkeypatch, config(updates={"order": "schedule", "stages": stages}))
    assert backend.learned == ["critic", "critic", "solver", "critic", "critic"]


async def test_a_role_that_no_policy_plays_ends_the_run(folder, model, monkeypatch):
    # A role without endpoint uses the team's own client.
    (folder / "app.py").write_text(APP.replace("http://127.0.0.1:9/v1", model.base_url))
    with pytest.raises(ConfigError, match=r"role 'tester' made calls.*frozen: true"):
        await run_loop(folder, "one_more", FourPolicies(model), monkeypatch, config())


async def test_a_policy_that_waits_in_vain_is_a_warning_and_then_an_error(folder, model, monkeypatch):
    backend = FourPolicies(model)
    with pytest.raises(ConfigError, match=r"policies\.critic: none of its roles.*since 2 steps"):
        await run_loop(folder, "solver_alone", backend, monkeypatch, config())
    assert backend.learned == ["solver"]


async def test_log_probs_that_do_not_match_end_the_run(folder, model, monkeypatch):
    backend = FourPolicies(model, mismatch_kl=0.4)
    with pytest.raises(MismatchError, match=r"policies\.solver: .*mismatch_kl is 0\.4 .*first_mismatch"):
        await run_loop(folder, "team", backend, monkeypatch, config())
    assert not list((folder / "work" / "checkpoints").glob("step-000001"))
