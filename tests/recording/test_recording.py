"""``coterie.record``: an existing program's own code as an attempt."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

import coterie
from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.errors import ConfigError, CoterieError
from coterie.roles import acting_as
from coterie.runner import recorder
from coterie.testing import ScriptedModel
from coterie.vocabulary import AttemptState, Endpoint, FailureCause, Mode, Resource, ResourceKind, RolloutState, Task


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    recorder.close_recorders()
    coterie.uninstrument()


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda body: "said: " + str(body["messages"][-1]["content"])) as server:
        yield server


def ask(model: ScriptedModel, words: str, agent: str = "Coder") -> str:
    with acting_as(agent), OpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="small",
            messages=[{"role": "system", "content": "You write code."}, {"role": "user", "content": words}],
        )
        return str(answer.choices[0].message.content)


async def stored(path: Path) -> list[Episode]:
    async with coterie.connect(path) as store:
        rollouts = (await store.list_rollouts()).items
        return await load_episodes(store, [rollout.id for rollout in rollouts])


async def test_a_block_is_an_attempt_in_the_store(tmp_path: Path, model: ScriptedModel) -> None:
    with coterie.record(tmp_path / "team.db", task="What is 6 × 7?", metadata={"user": "u1"}) as recording:
        assert ask(model, "6 × 7?") == "said: 6 × 7?"
        coterie.reward(0.5, name="liked", role="coder")
    assert recording.problem is None
    episode = recording.episode
    assert [(turn.role, turn.text) for turn in episode.turns] == [("coder", "said: 6 × 7?")]
    assert [(reward.name, reward.value, reward.role) for reward in episode.rewards] == [("liked", 0.5, "coder")]
    assert await stored(tmp_path / "team.db") == [episode]
    async with coterie.connect(tmp_path / "team.db") as store:
        (rollout,) = (await store.list_rollouts()).items
        (task,) = await store.get_tasks([rollout.task_id])
        (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
    assert (rollout.id, rollout.mode, rollout.state) == (recording.rollout_id, Mode.PRODUCTION, RolloutState.SUCCEEDED)
    assert (rollout.metadata, task.input) == ({"user": "u1"}, "What is 6 × 7?")
    assert (attempt.id, attempt.state) == (recording.attempt_id, AttemptState.SUCCEEDED)


async def test_async_blocks_side_by_side_keep_apart(tmp_path: Path, model: ScriptedModel) -> None:
    async def serve(number: int) -> Episode:
        async with coterie.record(tmp_path / "team.db", task=f"task {number}") as recording:
            async with AsyncOpenAI(base_url=model.base_url, api_key="none") as client:
                for turn in range(2):
                    with acting_as("Coder"):
                        await client.chat.completions.create(
                            model="small", messages=[{"role": "user", "content": f"{number}.{turn}"}]
                        )
            coterie.reward(number)
        return recording.episode

    episodes = await asyncio.gather(*map(serve, range(8)))
    for number, episode in enumerate(episodes):
        assert [turn.text for turn in episode.turns] == [f"said: {number}.0", f"said: {number}.1"]
        assert [reward.value for reward in episode.rewards] == [number]
    kept = {episode.attempt_id: episode for episode in await stored(tmp_path / "team.db")}
    assert kept == {episode.attempt_id: episode for episode in episodes}


def test_threads_keep_apart_and_in_memory_needs_no_store(model: ScriptedModel) -> None:
    def serve(number: int) -> Episode:
        with coterie.record(task=number) as recording:
            ask(model, f"call {number}")
        return recording.episode

    with ThreadPoolExecutor(8) as pool:
        episodes = list(pool.map(serve, range(16)))
    assert [[turn.text for turn in one.turns] for one in episodes] == [[f"said: call {n}"] for n in range(16)]
    assert len({episode.attempt_id for episode in episodes}) == 16


def test_a_thread_that_a_block_starts_belongs_to_it_with_its_context(model: ScriptedModel) -> None:
    with coterie.record(task="t") as recording, ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, ask, model, "from a thread").result()
    assert [turn.text for turn in recording.episode.turns] == ["said: from a thread"]


async def test_the_innermost_recording_counts(tmp_path: Path, model: ScriptedModel) -> None:
    with coterie.record(tmp_path / "outer.db", task="outer") as outer, acting_as("Lead"):
        ask(model, "one")
        async with coterie.record(tmp_path / "inner.db", task="inner") as inner:
            ask(model, "two")
        ask(model, "three")
    assert [(turn.text, turn.agent_path) for turn in inner.episode.turns] == [("said: two", "Coder")]
    assert [turn.text for turn in outer.episode.turns] == ["said: one", "said: three"]
    assert await stored(tmp_path / "inner.db") == [inner.episode]


async def test_an_exception_passes_and_fails_the_attempt(tmp_path: Path, model: ScriptedModel) -> None:
    boom = ValueError("the team gave up")
    recording = coterie.record(tmp_path / "team.db", task="t")
    with pytest.raises(ValueError, match="gave up") as raised, recording:  # noqa: PT012
        ask(model, "before")
        raise boom
    assert raised.value is boom
    assert [turn.text for turn in recording.episode.turns] == ["said: before"]
    async with coterie.connect(tmp_path / "team.db") as store:
        (attempt,) = (await store.get_attempts([recording.rollout_id]))[recording.rollout_id]
        (rollout,) = await store.get_rollouts([recording.rollout_id])
        spans = (await store.get_spans([attempt.id]))[attempt.id]
    assert (attempt.state, attempt.cause, rollout.state) == (
        AttemptState.FAILED,
        FailureCause.ERROR,
        RolloutState.DEAD,
    )
    assert (attempt.error or "").startswith("ValueError: the team gave up")
    assert len(spans) == 2


async def test_learnt_prompts_are_used_unless_left_out(tmp_path: Path, model: ScriptedModel) -> None:
    path = tmp_path / "team.db"
    async with coterie.connect(path) as store:
        for text in ("You are old.", "You are learnt."):
            prompt = {"text": text, "role": "coder"}
            await store.publish(Resource("coder-prompt", ResourceKind.PROMPT, prompt))
        gone = Endpoint("http://127.0.0.1:9/v1", "learnt", "team")
        await store.publish(
            Resource("team", ResourceKind.ENDPOINT, {"base_url": gone.base_url, "model": "m", "policy": "team"})
        )
    with coterie.record(path, task="t") as learnt:
        ask(model, "a")
    with coterie.record(path, task="t", prompts=False) as own:
        ask(model, "b")
    async with coterie.record(path, task="t", prompts=["coder-prompt"], endpoints=["team"]) as both:
        with acting_as("Coder"), pytest.raises(Exception, match="Connection"):
            ask(model, "c")
    sent = [[message["content"] for message in one.body["messages"]] for one in model.requests]
    assert sent == [["You are learnt.", "a"], ["You write code.", "b"]]
    assert learnt.episode.turns[0].prompt_version == 2
    assert own.episode.turns[0].prompt_version is None
    assert (both.episode.turns[0].policy, both.episode.turns[0].prompt_version) == ("team", 2)
    with pytest.raises(ConfigError, match="no active prompt 'typo'; active are: 'coder-prompt'"):
        coterie.record(path, task="t", prompts=["typo"]).__enter__()
    async with coterie.connect(path) as store:
        (first, *_) = (await store.list_rollouts()).items
        assert first.resources == {"coder-prompt": 2}
        assert (await store.statistics())["rollouts"] == 3


def test_a_store_that_fails_breaks_nothing(
    tmp_path: Path, model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), coterie.record(tmp_path / "none" / "team.db", task="t") as recording:
        assert ask(model, "a") == "said: a"
    assert len(recording.episode.turns) == 1
    assert "in memory only" in str(recording.problem)
    assert "in memory only" in caplog.text


def test_wrong_use_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown kind 'mongo'"):
        coterie.record("mongo://x", task="t")
    with pytest.raises(ConfigError, match="JSON"):
        coterie.record(task=object())
    with pytest.raises(ConfigError, match="list of names"):
        coterie.record(task="t", prompts="coder")
    recording = coterie.record(task="t")
    with pytest.raises(CoterieError, match="not begun"):
        _ = recording.rollout_id
    with recording, pytest.raises(CoterieError, match="not ended"):
        _ = recording.episode
    with pytest.raises(CoterieError, match="used before"):
        recording.__enter__()


async def test_an_open_store_and_a_task_of_ones_own(tmp_path: Path, model: ScriptedModel) -> None:
    async with coterie.connect(tmp_path / "team.db") as store:
        async with coterie.record(store, task=Task("t9", "in", reference=42)) as recording:
            await asyncio.to_thread(ask, model, "a")
        assert await load_episodes(store, [recording.rollout_id]) == [recording.episode]
        assert recording.episode.task_id == "t9"
        assert (await store.get_tasks(["t9"]))[0].reference == 42


async def test_a_cancelled_task_ends_its_attempt(tmp_path: Path) -> None:
    inside = asyncio.Event()

    async def serve() -> None:
        async with coterie.record(tmp_path / "team.db", task="t"):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(serve())
    await asyncio.wait_for(inside.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with coterie.connect(tmp_path / "team.db") as store:
        (rollout,) = await store.wait([one.id for one in (await store.list_rollouts()).items], timeout_seconds=10)
    assert rollout.state is RolloutState.DEAD
    assert "CancelledError" in str(rollout.reason)


def test_a_generator_closed_elsewhere_breaks_nothing(model: ScriptedModel) -> None:
    def steps() -> Iterator[str]:
        with coterie.record(task="t"):
            yield ask(model, "a")

    running = contextvars.copy_context().run(lambda: (made := steps(), next(made)))
    running[0].close()


def test_a_crash_loses_little_and_leaves_the_attempt_to_its_lease(tmp_path: Path, model: ScriptedModel) -> None:
    program = textwrap.dedent(
        f"""
        import os, time, coterie
        from openai import OpenAI
        with coterie.record("team.db", task="t"):
            with coterie.agent("Coder"):
                OpenAI(base_url={model.base_url!r}, api_key="none").chat.completions.create(
                    model="small", messages=[{{"role": "user", "content": "hello"}}])
            coterie.reward(1.0)
            time.sleep(1.6)
            os._exit(9)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 9

    async def found() -> None:
        async with coterie.connect(tmp_path / "team.db") as store:
            (rollout,) = (await store.list_rollouts()).items
            (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
            assert (rollout.state, attempt.state) == (RolloutState.RUNNING, AttemptState.RUNNING)
            spans = (await store.get_spans([attempt.id]))[attempt.id]
            assert any(span.name.startswith("chat") for span in spans)
            assert [reward.value for reward in (await store.get_rewards([attempt.id]))[attempt.id]] == [1.0]

    asyncio.run(found())
