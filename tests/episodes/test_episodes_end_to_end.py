"""From real OpenAI SDK calls over a real socket, through runner and store file, to episodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

import coterie
from coterie.assembly import load_episodes, load_rewards
from coterie.roles import acting_as
from coterie.runner import Runner
from coterie.store.base import Store
from coterie.testing import Reply, ScriptedModel, toy_tokens
from coterie.vocabulary import Resource, ResourceKind, Rollout, Task


def answer(body: dict[str, Any]) -> Reply:
    """The last message's text, doubled; a text that begins with ``slow`` comes late."""
    text = body["messages"][-1]["content"]
    return Reply(text=text * 2, delay_seconds=0.05 if text.startswith("slow") else 0.0)


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    with ScriptedModel(answer, policy_version=7) as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path, model: ScriptedModel) -> AsyncIterator[Store]:
    async with coterie.connect(tmp_path / "store.db") as opened:
        await opened.add_tasks([Task(f"t{number}", number) for number in range(8)])
        content = {"base_url": model.base_url, "model": "m", "policy": "p", "sampling": {"temperature": 1.0}}
        await opened.publish(Resource("main", ResourceKind.ENDPOINT, content))
        yield opened


async def ended(store: Store, function: Any, rollouts: list[Rollout]) -> list[str]:
    async with Runner(store, coterie.rollout(function), concurrency=8):
        await store.enqueue(rollouts)
        await store.wait([rollout.id for rollout in rollouts], timeout_seconds=60)
    return [rollout.id for rollout in rollouts]


async def test_parallel_roles_have_their_own_turns_tokens_and_rewards(store: Store) -> None:
    async with AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:

        async def work(name: str, texts: list[str], value: float) -> None:
            with acting_as(name) as who:
                for text in texts:
                    await client.chat.completions.create(model="x", messages=[{"role": "user", "content": text}])
                    await asyncio.sleep(0)
                coterie.reward(value, role=who.role)

        async def team(task: Task) -> dict[str, float]:
            with acting_as("Lead"):
                await asyncio.gather(
                    work("A", [f"slow a {task.input}", "a again"], 1.0), work("B", [f"b {task.input}"], 0.0)
                )
            by_call = {call.call_id: call for call in coterie.calls()}
            assert len(by_call) == 3
            return {"team": float(task.input)}

        rollouts = [Rollout(f"t{number}", resources={"main": 1}) for number in range(8)]
        ids = await ended(store, team, rollouts)

    episodes = await load_episodes(store, ids)
    assert [(episode.rollout_id, episode.task_id) for episode in episodes] == [
        (one.id, one.task_id) for one in rollouts
    ]
    for number, episode in enumerate(episodes):
        turns = {(turn.role, turn.index): turn for turn in episode.turns}
        assert set(turns) == {("a", 0), ("a", 1), ("b", 0)}
        for (role, index), text in {
            ("a", 0): f"slow a {number}",
            ("a", 1): "a again",
            ("b", 0): f"b {number}",
        }.items():
            turn = turns[role, index]
            assert turn.trainable
            assert (turn.messages[-1]["content"], turn.text) == (text, text * 2)
            assert turn.response_ids is not None
            assert turn.response_ids[:-1] == tuple(toy_tokens(text * 2))
            assert (turn.agent_path, turn.policy, turn.policy_version) == (f"Lead/{role.upper()}", "p", 7)
        rewards = {(reward.role, reward.value) for reward in episode.rewards}
        assert rewards == {("a", 1.0), ("b", 0.0), (None, float(number))}
    assert await load_rewards(store, ids) == {episode.rollout_id: tuple(episode.rewards) for episode in episodes}


async def test_sync_functions_and_threads_are_captured_too(store: Store) -> None:
    def team(task: Task) -> float:
        with OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client, acting_as("Coder"):
            stream = client.chat.completions.create(
                model="x", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "hihi"
        return 1.0

    (episode,) = await load_episodes(store, await ended(store, team, [Rollout("t1", resources={"main": 1})]))
    (turn,) = episode.turns
    assert (turn.role, turn.text, turn.trainable) == ("coder", "hihi", True)


async def test_the_last_success_counts_and_failures_are_left_out(store: Store) -> None:
    tries = 0

    async def team(task: Task) -> float:
        nonlocal tries
        tries += 1
        if task.id == "t2" or tries == 1:
            raise ValueError("no luck")
        return float(tries)

    ids = await ended(store, team, [Rollout("t1", max_attempts=2), Rollout("t2")])
    (episode,) = await load_episodes(store, ids)
    assert episode.task_id == "t1"
    assert set(await load_rewards(store, ids)) == {ids[0]}
    attempts = (await store.get_attempts(ids))[ids[0]]
    assert episode.attempt_id == attempts[1].id
