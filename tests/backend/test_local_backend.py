"""The local backend on real verl and vLLM. One backend serves all tests; the last breaks it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from backend_parts import (
    Answer,
    Caller,
    changed,
    largest_difference,
    make_backend,
    reference_logprobs,
)
from left_behind import LeftBehind

import coterie
from coterie.assembly import load_episodes
from coterie.errors import BackendError
from coterie.vocabulary import Endpoint, Metrics, Mode, RolloutState
from coterie_trainers import config
from coterie_trainers.backends.local import LocalBackend
from coterie_trainers.health.guard import judge
from coterie_trainers.health.history import History
from coterie_trainers.health.verdict import Level
from coterie_trainers.loop import run as loop_run
from coterie_trainers.progress_display import make_progress

pytestmark = [pytest.mark.train, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Running:
    backend: LocalBackend
    endpoint: Endpoint
    caller: Caller
    folder: Path
    left_behind: LeftBehind

    async def answers(self, number: int = 16) -> list[Answer]:
        return await asyncio.gather(*(self.caller.ask(f"say {index % 4}") for index in range(number)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    patch = pytest.MonkeyPatch()
    left_behind = LeftBehind(patch)
    folder = tmp_path_factory.mktemp("work")
    backend = make_backend(folder, tiny_model)
    torch_was_there = "torch" in sys.modules
    try:
        endpoint = (await backend.serve())["team"]
        assert torch_was_there or "torch" not in sys.modules
        yield Running(backend, endpoint, Caller(endpoint), folder, left_behind)
    finally:
        await backend.close()
        patch.undo()
    left_behind.assert_nothing()
    shutil.rmtree(left_behind.temporary)


async def test_rollout_and_actor_agree(running: Running, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    answers = await running.answers(37)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    messages = [{"role": "user", "content": "say 0"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert list(answers[0].prompt_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(len(answer.token_ids) == len(answer.logprobs) for answer in answers)
    assert largest_difference(answers, reference_logprobs(tiny_model, answers)) < 1e-4

    update = await running.backend.update("team", [answer.row() for answer in answers])
    assert update.rows == 37
    assert update.tokens == sum(len(answer.token_ids) for answer in answers)
    assert update.metrics["mismatch_max"] < 1e-4
    assert abs(update.metrics["mismatch_kl"]) < 1e-6
    assert update.metrics["grad_norm"] == 0
    assert 2 < update.metrics["entropy"] < 4.7
    assert update.metrics["lr"] == pytest.approx(5e-3)

    shifted = [
        changed(row, rollout_logprobs=[lp - 0.5 for lp in row.rollout_logprobs]) for row in map(Answer.row, answers)
    ]
    assert (await running.backend.update("team", shifted)).metrics["mismatch_max"] == pytest.approx(0.5, abs=1e-3)


async def test_another_temperature_agrees_too(running: Running) -> None:
    answers = await asyncio.gather(*(running.caller.ask(f"say {i}", temperature=0.7) for i in range(8)))
    rows = [answer.row() for answer in answers]
    assert (await running.backend.update("team", rows, temperature=0.7)).metrics["mismatch_max"] < 1e-4
    assert (await running.backend.update("team", rows, temperature=1.0)).metrics["mismatch_max"] > 1e-2


async def test_answers_name_their_version_also_streamed(running: Running) -> None:
    before = await running.caller.ask("hello")
    assert before.version == before.version_end
    assert await running.backend.publish("team") == before.version + 1
    after = await running.caller.ask("hello")
    assert (after.version, after.version_end) == (before.version + 1,) * 2

    create = running.caller.client.chat.completions.with_streaming_response.create
    arguments = {"model": "team", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "stream": True}
    async with create(**arguments) as response:
        assert response.headers["x-coterie-policy-version"] == str(after.version)
        lines = [line async for line in response.iter_lines() if line.startswith("data:")]
    assert len(lines) > 3
    assert lines[-1] == "data: [DONE]"


async def test_only_the_driver_may_change_weights(running: Running) -> None:
    import httpx

    base = str(running.caller.client.base_url).removesuffix("/v1/")
    async with httpx.AsyncClient() as client:
        for headers in ({}, {"authorization": "Bearer guess"}):
            answer = await client.post(f"{base}/coterie/weights", json={"version": 99, "seconds": 1}, headers=headers)
            assert answer.status_code == 401
    assert (await running.caller.ask("hello")).version != 99


async def test_a_reward_rises(running: Running) -> None:
    means = []
    for _ in range(8):
        answers = await running.answers(48)
        rewards = [sum(letter.isdigit() for letter in answer.text) / len(answer.token_ids) for answer in answers]
        means.append(sum(rewards) / len(rewards))
        rows = [answer.row(reward - means[-1]) for answer, reward in zip(answers, rewards, strict=True)]
        assert (await running.backend.update("team", rows)).metrics["mismatch_max"] < 1e-4
        await running.backend.publish("team")
    assert means[-1] > means[0] + 0.2


async def test_the_guard_sees_a_policy_that_runs_away_from_its_server(running: Running, tmp_path: Path) -> None:
    await running.backend.save(tmp_path / "good")
    rows = [answer.row(1.0 if place % 2 else -1.0) for place, answer in enumerate(await running.answers(48))]
    history = History()
    for step in range(1, 31):  # the same stale answers over and over: nothing is published
        update = await running.backend.update("team", rows)
        history.add(Metrics("run", step, {"success": 0.5, **update.metrics}))
        verdict = judge(history, config.Guard())
        assert verdict.level is not Level.STOP or step > 2
        if verdict.level is Level.STOP:
            break
    assert verdict.level is Level.STOP
    assert {finding.rule for finding in verdict.stops} <= {"mismatch", "clipping", "gradient"}
    assert {finding.subject for finding in verdict.stops} & {"role 'writer'", "the policy"}

    await running.backend.load(tmp_path / "good")
    again = await running.backend.update("team", [answer.row() for answer in await running.answers(8)])
    assert again.metrics["mismatch_max"] < 1e-4


async def test_answers_under_load_come_from_one_version_each(running: Running, tmp_path: Path) -> None:
    stop = asyncio.Event()
    collected: list[Answer] = []

    async def agent(number: int) -> None:
        while not stop.is_set():
            collected.append(await running.caller.ask(f"say {number}", max_tokens=24))

    agents = [asyncio.create_task(agent(number)) for number in range(12)]
    versions = []
    for number in range(3):
        await asyncio.sleep(0.3)
        rows = [answer.row(1.0 if index % 2 else -1.0) for index, answer in enumerate(collected[-16:])]
        await running.backend.update("team", rows)
        await running.backend.save(tmp_path / str(number))
        versions.append(await running.backend.publish("team"))
    await asyncio.sleep(0.5)
    stop.set()
    await asyncio.gather(*agents)

    assert all(answer.version == answer.version_end for answer in collected)
    for number, version in enumerate(versions):
        of_version = [answer for answer in collected if answer.version == version][:40]
        assert of_version
        model = tmp_path / str(number) / "team" / "model"
        assert largest_difference(of_version, reference_logprobs(model, of_version)) < 1e-4


TEAM = """
import asyncio
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=60)

@coterie.rollout
async def team(task, mode):
    digits = tokens = 0
    with coterie.agent("writer"):
        for _ in range(3 if mode == "train" else 1):
            messages = [{"role": "user", "content": f"say {task.input}"}]
            answer = await client.chat.completions.create(model="m", messages=messages)
            text = answer.choices[0].message.content
            digits, tokens = digits + sum(letter.isdigit() for letter in text), tokens + 1 + len(text)
            await asyncio.sleep(0.3 * task.input if mode == "train" else 0.0)
    return digits / tokens
"""


class Shared:
    """The backend of all tests, lent to one training run."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def __getattr__(self, name: str) -> Any:
        return getattr(self.running.backend, name)

    async def serve(self) -> Mapping[str, Endpoint]:
        # Tests before have published versions of their own.
        return {"team": replace(self.running.endpoint, version=await self.running.backend.publish("team"))}

    async def close(self) -> None: ...


async def test_rollouts_outlive_the_weights_they_began_with(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asynchronous collection: steps train while rollouts are in flight, and each turn knows the weights that gave it."""
    (tmp_path / "app.py").write_text(TEAM)
    for split in ("train", "val", "test"):
        tasks = [json.dumps({"id": f"{split}-{n}", "input": n}) for n in range(4 if split == "train" else 1)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(tasks))
    settings = config.TrainConfig.model_validate(
        {
            "name": "async",
            "dataset": {split: f"{split}.jsonl" for split in ("train", "val", "test")},
            "policies": {"team": {"model": "m"}},
            "training": {
                "collection": "async",
                "max_staleness": 2,
                "steps": 6,
                "tasks_per_step": 2,
                "rollouts_per_task": 4,
            },
            "evaluation": {"every": 6, "test_samples": 1},
            "runner": {"concurrency": 16},
            "guard": None,  # the learning rate of these tests is far beyond what it lets pass
        }
    )
    monkeypatch.setattr(loop_run, "make_backend", lambda *_: Shared(running))
    run = await loop_run.train(
        "app.py:team", settings, folder=tmp_path, work=tmp_path / "work", progress=make_progress()
    )
    async with coterie.connect(str(tmp_path / "work" / "store.db")) as store:
        steps = [row.values for row in await store.get_metrics(run.id, stage="train")]
        rollouts = (await store.list_rollouts(mode=Mode.TRAIN)).items
        episodes = await load_episodes(store, [rollout.id for rollout in rollouts])
    assert {rollout.state for rollout in rollouts} == {RolloutState.SUCCEEDED}
    assert len(rollouts) == 6 * 2 * 4
    versions = [[turn.policy_version for turn in episode.turns] for episode in episodes]
    assert all(each == sorted(each) for each in versions)
    assert any(len(set(each)) > 1 for each in versions)
    assert steps[0]["staleness_max"] == 0
    assert steps[0]["mismatch_max"] < 1e-4
    assert 1 <= max(step["staleness_max"] for step in steps) <= 2
    # Log-probs are those of the weights that sampled: where these are old, they differ from the trainer's.
    assert max(step["mismatch_max"] for step in steps if step["staleness_max"] > 0) > 1e-3


async def test_weights_scale_the_gradient(running: Running, tmp_path: Path) -> None:
    rows = [answer.row(0.5 if index % 2 else -0.5) for index, answer in enumerate(await running.answers(9))]
    norms = []
    for weights in ((1.0,) * 9, (3.0,) * 9, (0.0,) * 4 + (1.0,) * 5):
        weighted = [changed(row, weight=weight) for row, weight in zip(rows, weights, strict=True)]
        norms.append(await _gradient_norm(running, tmp_path, weighted))
    alone = await _gradient_norm(running, tmp_path, rows[4:])
    assert norms[0] > 0
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-4)
    # Four rows of weight 0 leave the gradient of the other five, as a part of the mean over nine.
    assert norms[2] == pytest.approx(alone * 5 / 9, rel=1e-4)


async def test_masked_tokens_carry_no_gradient(running: Running, tmp_path: Path) -> None:
    rows = [answer.row(0.5 if index % 2 else -0.5) for index, answer in enumerate(await running.answers(8))]
    masks = [tuple(int(place % 3 != 1) for place in range(len(row.response_ids))) for row in rows]

    def masked(row_masks: list[tuple[int, ...]], advantage: float, logprob: float) -> list:
        return [
            changed(
                row,
                response_mask=mask,
                advantages=[a if m else advantage for a, m in zip(row.advantages, mask, strict=True)],
                rollout_logprobs=[lp if m else logprob for lp, m in zip(row.rollout_logprobs, mask, strict=True)],
            )
            for row, mask in zip(rows, row_masks, strict=True)
        ]

    quiet = await _gradient_norm(running, tmp_path, masked(masks, 0.0, 0.0))
    loud = await _gradient_norm(running, tmp_path, masked(masks, 1000.0, -9.0))
    whole = await _gradient_norm(running, tmp_path, rows)
    assert quiet == pytest.approx(loud, rel=1e-6)
    assert quiet != pytest.approx(whole, rel=1e-3)
    update = await running.backend.update("team", masked(masks, 0.0, 0.0))
    assert update.tokens == sum(map(sum, masks))
    assert update.metrics["mismatch_max"] < 1e-2


async def _gradient_norm(running: Running, folder: Path, rows: list) -> float:
    """The gradient's norm at the same weights each time."""
    saved = folder / "same-weights"
    if not saved.exists():
        await running.backend.save(saved)
    update = await running.backend.update("team", rows)
    await running.backend.load(saved)
    return update.metrics["grad_norm"]


async def test_a_checkpoint_is_whole_and_replaces_the_one_before(running: Running, tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    first = await running.backend.save(target)
    began = time.monotonic()
    await running.backend.save(target)
    assert time.monotonic() - began < 3
    assert os.listdir(tmp_path) == ["step-1"]
    assert sorted(os.listdir(target)) == ["team", "versions.json"]
    names = set(os.listdir(target / "team" / "model"))
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= names
    assert first["models"] == {"team": str(target / "team" / "model")}

    (target / "versions.json").write_text("{")
    with pytest.raises(BackendError, match="no checkpoint"):
        await running.backend.load(target)
    with pytest.raises(BackendError, match="no checkpoint"):
        await running.backend.load(tmp_path / "absent")


async def test_a_rolled_back_policy_gets_a_new_version(running: Running, tmp_path: Path) -> None:
    saved = await running.backend.save(tmp_path / "good")
    good = saved["versions"]["team"]
    last = max(await running.backend.publish("team"), await running.backend.publish("team"))
    await running.backend.load(tmp_path / "good")
    answer = await running.caller.ask("hello")
    assert good <= last
    assert answer.version == last + 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "other"}, "belongs to policy 'other'"),
        ({"prompt_ids": ()}, "needs a prompt"),
        ({"advantages": (1.0,)}, "1 advantages"),
    ],
)
async def test_a_malformed_row_is_named(running: Running, fields: dict, message: str) -> None:
    row = (await running.caller.ask("hello")).row(1.0)
    with pytest.raises(BackendError, match=message) as raised:
        await running.backend.update("team", [row, changed(row, **fields)])
    assert "row 1 (rollout ro-1, role writer)" in str(raised.value)


async def test_no_rows_and_no_such_policy(running: Running) -> None:
    with pytest.raises(BackendError, match="no rows"):
        await running.backend.update("team", [])
    with pytest.raises(BackendError, match="no policy 'other'; there are: team"):
        await running.backend.publish("other")


async def test_a_killed_trainer_is_an_error_and_leaves_nothing(running: Running) -> None:
    """Last: the backend is of no use afterwards."""
    trainers = [pid for pid, command in running.left_behind.processes().items() if _is_trainer(command)]
    os.kill(trainers[0], signal.SIGSTOP)
    publishing = asyncio.create_task(running.backend.publish("team"))
    await asyncio.sleep(0.5)
    began = time.monotonic()
    os.kill(trainers[0], signal.SIGKILL)
    with pytest.raises(BackendError, match=r"the trainer of policy 'team' ended with exit code 137[^$]*last lines"):
        await publishing
    assert time.monotonic() - began < 10
    with pytest.raises(BackendError, match="cannot be used any more"):
        await running.backend.publish("team")
    await running.backend.close()
    await running.backend.close()
    running.left_behind.assert_nothing(5)


def _is_trainer(command: str) -> bool:
    return "trainer_process" in command and "guard.py" not in command
