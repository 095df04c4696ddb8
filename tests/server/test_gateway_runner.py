"""A runner whose agents reach their models through the gateway, as on a host that cannot reach the model servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
from gateway_parts import TOKEN, RunningGateway

import coterie
from coterie.assembly import load_episodes
from coterie.runner import Runner
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, Rollout, RolloutState, Task

client = openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)


@coterie.rollout
async def team(task: Task) -> float:
    """One call by each of two roles."""
    for role in ("planner", "coder"):
        with coterie.agent(role):
            await client.chat.completions.create(model="any", messages=[{"role": "user", "content": role}])
    return 1.0


async def test_agents_call_through_the_gateway_and_each_call_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COTERIE_TOKEN", TOKEN)
    with ScriptedModel(lambda body: "done") as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        async with coterie.connect(tmp_path / "runs.db") as store:
            episodes = await play(store, f"http://127.0.0.1:{gateway.port}")
        paths = {request.headers.get("x-coterie-call-id") for request in model.requests}
    assert [[(turn.role, turn.policy, turn.trainable) for turn in episode.turns] for episode in episodes] == [
        [("planner", "team", True), ("coder", "team", True)]
    ] * 3
    assert len(model.requests) == len(paths) == 6
    assert all(request.headers.get("authorization") != f"Bearer {TOKEN}" for request in model.requests)


async def play(store: Store, address: str):
    await store.add_tasks([Task("t", "x")])
    rollouts = [Rollout("t", mode=Mode.TRAIN, resources={"team": 1}) for _ in range(3)]
    await store.enqueue(rollouts)
    async with Runner(store, team, gateway=address):
        ended = await asyncio.wait_for(store.wait([rollout.id for rollout in rollouts]), 30)
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}, [rollout.reason for rollout in ended]
    return await load_episodes(store, [rollout.id for rollout in rollouts])
