"""An attempt of mode train without a trainable call is reported, with the likely cause: real calls to a real socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

import coterie
from coterie import conventions as names
from coterie.assembly import load_episodes
from coterie.runner import Runner, RunnerStatistics
from coterie.scope import current_scope
from coterie.store.base import Store
from coterie.testing import Reply, ScriptedModel
from coterie.vocabulary import Mode, Resource, ResourceKind, Rollout, RolloutState, Span


class Team:
    """Calls the model once; ``text`` is what it asks."""

    __name__ = "team"

    def __init__(self, client: AsyncOpenAI) -> None:
        self.client = client

    async def __call__(self, task: coterie.Task) -> float:
        try:
            await self.client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])
        except Exception:  # the team goes on without an answer
            return 0.0
        return 1.0


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    with ScriptedModel(lambda body: "fine") as running:
        yield running


@pytest.fixture
async def team(model: ScriptedModel) -> AsyncIterator[Team]:
    async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
        yield Team(client)


async def warnings(
    store: Store, function: Any, *, count: int = 1, pin: dict[str, Any] | None = None, mode: Mode = Mode.TRAIN
) -> tuple[list[str], RunnerStatistics]:
    """The warning of each of ``count`` attempts."""
    pins = {}
    if pin is not None:
        pins = {"main": (await store.publish(Resource("main", ResourceKind.ENDPOINT, pin))).version}
    rollouts = [Rollout("t1", mode=mode, resources=pins) for _ in range(count)]
    async with Runner(store, coterie.rollout(function)) as runner:
        await store.enqueue(rollouts)
        ended = await store.wait([rollout.id for rollout in rollouts], timeout_seconds=30)
        await runner.drain()
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
    attempts = await store.get_attempts([rollout.id for rollout in rollouts])
    return ["".join(attempt.warnings) for each in attempts.values() for attempt in each], runner.statistics


async def test_a_trainable_call_gives_no_warning(store: Store, team: Team, model: ScriptedModel) -> None:
    found, statistics = await warnings(store, team, pin={"base_url": model.base_url, "model": "m", "policy": "p"})
    assert found == [""]
    assert statistics.untrainable == 0


async def test_a_stream_that_nobody_read_to_its_end_is_recorded(store: Store, team: Team, model: ScriptedModel) -> None:
    kept = []

    async def half(task: coterie.Task) -> float:
        asked = [{"role": "user", "content": "hello"}]
        stream = await team.client.chat.completions.create(model="x", messages=asked, stream=True)
        kept.append(stream)
        await anext(aiter(stream))
        return 1.0

    await warnings(store, half, pin={"base_url": model.base_url, "model": "m", "policy": "p"})
    (rollout,) = (await store.list_rollouts()).items
    (episode,) = await load_episodes(store, [rollout.id])
    assert [turn.messages[0]["content"] for turn in episode.turns] == ["hello"]


async def test_no_call_at_all(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    async def team(task):
        return 1.0

    with caplog.at_level(logging.WARNING):
        found, statistics = await warnings(store, team, count=5)
    assert len(found) == 5
    assert all(
        text.startswith("no LLM call was seen. Does the team's model client not use the openai SDK") for text in found
    )
    assert statistics.untrainable == 5
    assert [record.message for record in caplog.records if "without a trainable call" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1


async def test_calls_without_an_endpoint(store: Store, team: Team) -> None:
    ((text,), _) = await warnings(store, team)
    assert text.startswith("1 LLM calls were answered, none with token ids and log-probs. No endpoint is pinned")


async def test_an_endpoint_that_does_not_ask_for_tokens(store: Store, team: Team, model: ScriptedModel) -> None:
    pin = {"base_url": model.base_url, "model": "m", "policy": "p", "token_ids": False}
    ((text,), _) = await warnings(store, team, pin=pin)
    assert "The endpoint of policy p has token_ids=False" in text


async def test_a_server_that_gives_no_tokens(store: Store, team: Team) -> None:
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
    }
    with ScriptedModel(lambda _: Reply(body=body)) as hosted:
        ((text,), _) = await warnings(store, team, pin={"base_url": hosted.base_url, "model": "m", "policy": "p"})
        assert f"The server at {hosted.base_url} was asked for them and gave none" in text


async def test_calls_that_all_failed(store: Store, team: Team) -> None:
    with ScriptedModel(lambda _: 500) as broken:
        ((text,), _) = await warnings(store, team, pin={"base_url": broken.base_url, "model": "m", "policy": "p"})
    assert text.startswith("all 1 LLM calls failed, the last with InternalServerError")


@pytest.mark.parametrize("mode", [Mode.VAL, Mode.TEST, Mode.PRODUCTION])
async def test_other_modes_need_no_tokens(store: Store, mode: Mode) -> None:
    async def team(task):
        await asyncio.sleep(0)
        return 1.0

    found, statistics = await warnings(store, team, mode=mode)
    assert found == [""]
    assert statistics.untrainable == 0


async def test_a_call_that_the_gateway_recorded_is_one(store: Store) -> None:
    """The team runs in another process or language, so this one sees nothing of its calls."""

    async def elsewhere(task: coterie.Task) -> float:
        scope = current_scope()
        assert scope is not None
        tokens = {names.PROMPT_TOKENS: [1], names.RESPONSE_TOKENS: [2], names.LOGPROBS: [-0.5]}
        attributes = {names.OPERATION: names.CHAT, names.RECORDED_BY: names.GATEWAY, names.CALL_ID: "ca-1", **tokens}
        ids = {"rollout_id": scope.rollout_id, "attempt_id": scope.attempt_id}
        await store.add_spans([Span("0" * 31 + "1", "0" * 15 + "1", "chat m", 1, 2, attributes=attributes, **ids)])
        return 1.0

    found, statistics = await warnings(store, elsewhere)
    assert found == [""]
    assert statistics.untrainable == 0
