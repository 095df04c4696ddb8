"""Policies of every kind on real verl and vLLM: whole, adapters, frozen and hosted. One backend serves all; the last test breaks it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from backend_parts import LOSS, SETTINGS, Answer, Caller, largest_difference, reference_logprobs
from left_behind import LeftBehind
from loop_parts import Told, small_config, write_project

import coterie
from coterie.assembly import load_episodes
from coterie.errors import BackendError
from coterie.interfaces import TrainingRow
from coterie.testing import ScriptedModel
from coterie.vocabulary import Endpoint, Mode
from coterie_trainers import config
from coterie_trainers.backends.local import LocalBackend
from coterie_trainers.exporting import export, trained_folder
from coterie_trainers.loop import run as loop_run

pytestmark = [pytest.mark.train, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

TRAINED = ("solver", "coder", "critic")


@dataclass
class Running:
    backend: LocalBackend
    endpoints: Mapping[str, Endpoint]
    """As they are now."""
    models: Mapping[str, Path]
    hosted: ScriptedModel
    left_behind: LeftBehind
    policies: Mapping[str, Any]

    async def ask(self, policy: str, text: str = "say 1", **arguments: Any) -> Answer:
        endpoint = self.endpoints[policy]
        return await Caller(endpoint).ask(text, model=endpoint.model, **arguments)

    async def answers(self, policy: str, number: int = 8) -> list[Answer]:
        caller, model = Caller(self.endpoints[policy]), self.endpoints[policy].model
        return await asyncio.gather(*(caller.ask(f"say {index % 4}", model=model) for index in range(number)))

    def rows(self, policy: str, answers: list[Answer]) -> list[TrainingRow]:
        return [
            replace(answer.row(1.0 if number % 2 else -1.0), policy=policy) for number, answer in enumerate(answers)
        ]

    def adapter_folders(self, policy: str) -> list[Path]:
        """The files that the server still has of its versions."""
        return list(Path(self.left_behind.temporary).glob(f"coterie-*/server-*/adapters/{policy}@*"))

    def process(self, *parts: str) -> int:
        """The process whose command has these parts."""
        (pid,) = [
            pid
            for pid, command in self.left_behind.processes().items()
            if "guard.py" not in command and all(part in command for part in parts)
        ]
        return pid

    async def learn(self, policy: str) -> Mapping[str, float]:
        """An update, and its publication."""
        update = await self.backend.update(policy, self.rows(policy, await self.answers(policy)))
        version = await self.backend.publish(policy)
        self.endpoints = {**self.endpoints, policy: self.endpoints[policy].at(version)}
        return update.metrics


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    from tiny_llama import make_tiny_llama

    patch = pytest.MonkeyPatch()
    left_behind = LeftBehind(patch)
    folder = tmp_path_factory.mktemp("work")
    # Room for more tokens than the tokenizer has, as many published models have.
    padded = make_tiny_llama(folder / "padded", seed=1, padding=25)
    patch.setenv("BIG_MODEL_KEY", "key-of-the-big-model")
    with ScriptedModel(lambda request: "fine", model="big") as hosted:
        adapter = {"rank": 4, "alpha": 8}
        policies = {
            "solver": {"model": str(padded), "roles": ["solver"], "learning_rate": 5e-3},
            "coder": {"model": str(tiny_model), "roles": ["coder"], "adapter": adapter, "learning_rate": 2e-2},
            "critic": {"model": str(tiny_model), "roles": ["critic"], "adapter": adapter, "learning_rate": 2e-2},
            "guide": {"model": str(tiny_model), "roles": ["guide"], "frozen": True},
            "judge": {
                "roles": ["judge"],
                "hosted": {"base_url": hosted.base_url, "model": "big", "api_key": "env:BIG_MODEL_KEY"},
            },
        }
        backend = LocalBackend(
            {name: config.Policy.model_validate(policy) for name, policy in policies.items()},
            SETTINGS,
            LOSS,
            config.Sampling(max_tokens=12),
            folder=folder,
            seed=0,
        )
        try:
            endpoints = await backend.serve()
            models = {name: Path(policy.get("model", "")) for name, policy in policies.items()}
            yield Running(backend, endpoints, models, hosted, left_behind, policies)
        finally:
            await backend.close()
            patch.undo()
    left_behind.assert_nothing()
    shutil.rmtree(left_behind.temporary)


async def test_four_policies_need_two_servers_and_two_trainers(running: Running):
    commands = [command for command in running.left_behind.processes().values() if "guard.py" not in command]
    assert sum("vllm.entrypoints" in command and "serve" in command for command in commands) == 2
    assert sum("trainer_process" in command for command in commands) == 2
    assert running.endpoints["coder"].base_url == running.endpoints["guide"].base_url
    assert {name: endpoint.model for name, endpoint in running.endpoints.items()} == {
        "solver": "solver",
        "coder": "coder@0",
        "critic": "critic@0",
        "guide": "guide",
        "judge": "big",
    }
    judge = running.endpoints["judge"]
    assert (judge.token_ids, judge.api_key_env, judge.sampling) == (False, "BIG_MODEL_KEY", {})


async def test_only_the_policy_that_learns_changes(running: Running, tmp_path: Path):
    for name in (*TRAINED, "guide"):
        answers = await running.answers(name)
        assert largest_difference(answers, reference_logprobs(running.models[name], answers)) < 1e-4, name
    for name in TRAINED:
        metrics = await running.learn(name)
        assert metrics["mismatch_max"] < 1e-4
        assert metrics["grad_norm"] > 0
    await running.learn("coder")

    saved = await running.backend.save(tmp_path / "checkpoint")
    assert saved["versions"] == {"solver": 1, "coder": 2, "critic": 1}
    for name in TRAINED:
        answers = await running.answers(name)
        assert {answer.version for answer in answers} == {saved["versions"][name]}
        export(tmp_path / "checkpoint" / name / "model", tmp_path / name, merged=True)
        assert largest_difference(answers, reference_logprobs(tmp_path / name, answers)) < 1e-4, name
        assert largest_difference(answers, reference_logprobs(running.models[name], answers)) > 1e-2
    frozen = await running.answers("guide")
    assert {answer.version for answer in frozen} == {0}
    assert largest_difference(frozen, reference_logprobs(running.models["guide"], frozen)) < 1e-4


async def test_adapters_change_under_load_without_a_pause(running: Running, tmp_path: Path):
    stop = asyncio.Event()
    collected: list[Answer] = []

    async def agent(number: int) -> None:
        while not stop.is_set():
            collected.append(await running.ask("coder", f"say {number}", max_tokens=24))

    agents = [asyncio.create_task(agent(number)) for number in range(8)]
    folders = {}
    for number in range(3):
        await asyncio.sleep(0.2)
        await running.learn("coder")
        version = running.endpoints["coder"].version
        await running.backend.save(tmp_path / str(number))
        folders[version] = tmp_path / f"merged-{version}"
        export(tmp_path / str(number) / "coder" / "model", folders[version], merged=True)
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*agents)
    for version, folder in folders.items():
        of_version = [answer for answer in collected if answer.version == version][:24]
        assert of_version
        assert largest_difference(of_version, reference_logprobs(folder, of_version)) < 1e-4


async def test_old_adapters_are_unloaded_and_their_calls_answered_by_the_newest(running: Running):
    newest = running.endpoints["coder"].version
    caller = Caller(running.endpoints["coder"])
    asked = {f"coder@{newest - 1}": newest - 1, "coder": newest, "coder@0": newest}
    for model, version in asked.items():
        answer = await caller.ask("hello", model=model)
        assert (answer.version, answer.version_end) == (version, version), model
    served = {model.id for model in (await caller.client.models.list()).data}
    assert {name for name in served if name.startswith("coder@")} == {f"coder@{newest}", f"coder@{newest - 1}"}
    assert len(running.adapter_folders("coder")) <= 3


async def test_a_rolled_back_adapter_is_the_one_that_was_saved(running: Running, tmp_path: Path):
    await running.backend.save(tmp_path / "good")
    export(tmp_path / "good" / "critic" / "model", tmp_path / "merged", merged=True)
    before = running.endpoints["critic"].version
    await running.learn("critic")
    versions = await running.backend.load(tmp_path / "good")
    assert set(versions) == set(TRAINED)
    assert versions["critic"] == before + 2
    running.endpoints = {
        name: endpoint.at(versions[name]) if name in versions else endpoint
        for name, endpoint in running.endpoints.items()
    }
    answers = await running.answers("critic")
    assert {answer.version for answer in answers} == {before + 2}
    assert largest_difference(answers, reference_logprobs(tmp_path / "merged", answers)) < 1e-4


@pytest.mark.parametrize(("policy", "kind"), [("guide", "frozen"), ("judge", "hosted")])
async def test_what_is_never_trained_cannot_be_asked_to(running: Running, policy: str, kind: str):
    with pytest.raises(BackendError, match=f"policy '{policy}' is {kind}"):
        await running.backend.update(policy, [])
    with pytest.raises(BackendError, match=f"policy '{policy}' is {kind}"):
        await running.backend.publish(policy)


APP = """
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=20)

@coterie.rollout
async def team(task):
    digits = 0
    for role in ("solver", "coder", "critic", "guide", "judge"):
        with coterie.agent(role):
            answer = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": f"say {task.input}"}]
            )
        digits += sum(letter.isdigit() for letter in answer.choices[0].message.content)
    return digits / 20
"""


async def test_a_team_of_all_kinds_is_trained(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """End to end in the loop: each role's calls go to its policy, and the trained ones alone change."""
    backend = running.backend

    class Started:
        """The backend that runs already."""

        async def serve(self) -> Mapping[str, Endpoint]:
            return running.endpoints

        async def close(self) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

    monkeypatch.setattr(loop_run, "make_backend", lambda *_: Started())
    settings = small_config(
        policies=running.policies,
        training={"steps": 2, "tasks_per_step": 2, "rollouts_per_task": 4},
        evaluation={"every": 2},
        runner={"concurrency": 8, "deadline_seconds": 30},
        sampling={"max_tokens": 12},
        updates={"order": "schedule", "stages": [{"policies": ["solver", "coder"]}, {"policies": ["critic"]}]},
    )
    began = {name: endpoint.version for name, endpoint in running.endpoints.items()}
    folder, work, told = write_project(tmp_path, APP), tmp_path / "work", Told()
    await loop_run.train("app.py:team", settings, folder=folder, work=work, progress=told)
    assert told.warnings == []

    async with coterie.connect(str(work / "store.db")) as store:
        rollouts = (await store.list_rollouts(mode=Mode.TRAIN)).items
        episodes = {each.rollout_id: each for each in await load_episodes(store, [each.id for each in rollouts])}
        metrics = await store.get_metrics(rollouts[0].run_id, stage="train")
    assert len(rollouts) == 16
    for rollout in rollouts:
        answered = {turn.role: (turn.policy, turn.policy_version, turn.model) for turn in episodes[rollout.id].turns}
        solver, coder = began["solver"] + (rollout.step == 2), began["coder"] + (rollout.step == 2)
        assert answered == {
            "solver": ("solver", solver, "solver"),
            "coder": ("coder", coder, f"coder@{coder}"),
            "critic": ("critic", began["critic"], f"critic@{began['critic']}"),
            "guide": ("guide", 0, "guide"),
            "judge": ("judge", 0, "big"),
        }
    first, second = (row.values for row in metrics)
    assert {"solver/loss", "coder/loss"} <= set(first)
    assert "critic/loss" not in first
    assert "critic/loss" in second
    assert {request.headers["authorization"] for request in running.hosted.requests} == {"Bearer key-of-the-big-model"}

    assert sorted(path.name for path in (work / "policies").iterdir()) == sorted(TRAINED)
    assert trained_folder(work, "coder") == work / "policies" / "coder"
    peft = json.loads((work / "policies" / "coder" / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == str(running.models["coder"])


async def test_a_killed_trainer_or_server_is_an_error_and_leaves_nothing(running: Running):
    """Last: the backend is of no use afterwards."""
    rows = running.rows("solver", await running.answers("solver"))
    await running.backend.update("coder", running.rows("coder", await running.answers("coder")))

    trainer = running.process("trainer_process", '"policy": "solver"')
    os.kill(trainer, signal.SIGSTOP)
    updating = asyncio.create_task(running.backend.update("solver", rows))
    await asyncio.sleep(0.3)
    os.kill(trainer, signal.SIGKILL)
    with pytest.raises(BackendError, match=r"the trainer of policy 'solver' ended with exit code 137"):
        await asyncio.wait_for(updating, 15)

    server = running.process("vllm.entrypoints", "--enable-lora")
    os.kill(server, signal.SIGSTOP)
    publishing = asyncio.create_task(running.backend.publish("coder"))
    await asyncio.sleep(0.5)
    os.kill(server, signal.SIGKILL)
    with pytest.raises(
        BackendError, match=r"the model server of policy 'coder, critic, guide' ended with exit code 137"
    ):
        await asyncio.wait_for(publishing, 15)
    with pytest.raises(BackendError, match="cannot be used any more"):
        await running.backend.update("solver", rows)
    await running.backend.close()
    running.left_behind.assert_nothing(5)
