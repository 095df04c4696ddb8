"""A pinned prompt that no call used is told on the attempt; recordings and the gateway take up active prompts alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

import coterie
from coterie.apps import load_app
from coterie.assembly import load_episodes
from coterie.capture import faults
from coterie.errors import ConfigError
from coterie.roles import acting_as
from coterie.runner import Runner, recorder
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, Resource, ResourceKind, ResourceStatus, Rollout, Task


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    faults._noted.clear()
    yield
    recorder.close_recorders()
    coterie.uninstrument()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with coterie.connect(tmp_path / "team.db") as opened:
        await opened.add_tasks([Task("t1", "question")])
        yield opened


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda _: "4") as server:
        yield server


async def publish(
    store: Store, name: str, text: str, status: ResourceStatus = ResourceStatus.ACTIVE, **more: Any
) -> int:
    content = {"text": text, "role": "coder", **more}
    return (await store.publish(Resource(name, ResourceKind.PROMPT, content, status=status))).version


async def attempt_of(store: Store, function: Any, pins: dict[str, int], mode: Mode = Mode.VAL) -> Any:
    rollout = Rollout("t1", mode=mode, resources=pins, max_attempts=1)
    async with Runner(store, coterie.rollout(function)) as runner:
        await store.enqueue([rollout])
        await store.wait([rollout.id], timeout_seconds=30)
        await runner.drain()
    ((attempt,),) = (await store.get_attempts([rollout.id])).values()
    return attempt


def ask(model: ScriptedModel, agent: str = "Coder", system: str = "mine", **more: Any) -> str:
    with acting_as(agent), OpenAI(base_url=model.base_url, api_key="k", max_retries=0) as client:
        client.chat.completions.create(
            model="m", messages=[{"role": "system", "content": system}, {"role": "user", "content": "?"}], **more
        )
    return str(model.requests[-1].body["messages"][0]["content"])


async def test_used_prompts_give_no_warning(store: Store, model: ScriptedModel) -> None:
    pins = {
        "coder": await publish(store, "coder", "Be exact."),
        "coder/examples": await publish(store, "coder/examples", "Q, A", part="examples"),
    }
    seen: list[str] = []

    def team(task: Task, prompts: dict[str, str]) -> float:
        seen.append(prompts["coder"])
        seen.append(ask(model))
        return 1.0

    attempt = await attempt_of(store, team, pins)
    assert seen == ["Be exact.", "Be exact.\n\nQ, A"]
    assert list(attempt.warnings) == []


async def test_unused_prompts_are_told_with_their_likely_cause(
    store: Store, model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    pins = {
        "judge": await publish(store, "judge", "Judge.", role="judge"),
        "search": await publish(store, "search", "Looks.", part="tool/search"),
        "filled": await publish(store, "filled", "In {{language}}.", placeholders=["language"]),
    }

    def team(task: Task) -> float:
        ask(model)
        return 1.0

    with caplog.at_level(logging.WARNING, logger="coterie.runner"):
        filled, judge, search = sorted((await attempt_of(store, team, pins)).warnings)
        await attempt_of(store, team, pins)
    assert "no call used prompt 'judge' version 1, the system prompt of role 'judge'. No call of this role" in judge
    assert "the roles that called are coder. Was it not needed here, or is its agent called otherwise" in judge
    assert search.endswith("No call of this role offered a tool 'search' to the model in its request.")
    assert "It has the placeholders {{language}}, which only the program can fill" in filled
    logged = [record.message for record in caplog.records if "A pinned prompt was not used" in record.message]
    assert len(logged) == 6  # Each once a runner.


async def test_without_any_call_the_warning_says_so(store: Store) -> None:
    pins = {"coder": await publish(store, "coder", "Be exact.")}

    async def team(task: Task) -> float:
        return 1.0

    (warning,) = (await attempt_of(store, team, pins)).warnings
    assert "No LLM call was seen at all" in warning


async def test_worker_processes_have_the_prompts_and_tell_what_was_used(
    store: Store, tmp_path: Path, model: ScriptedModel
) -> None:
    (tmp_path / "app.py").write_text(
        "import coterie, openai\n\n\n@coterie.rollout\ndef team(task, prompts):\n"
        f"    client = openai.OpenAI(base_url={model.base_url!r}, api_key='k')\n"
        "    text = coterie.prompt('coder', language='Rust') + prompts['judge']\n"
        "    with coterie.agent('Coder'):\n"
        "        client.chat.completions.create(model='m', messages=[{'role': 'system', 'content': text}])\n"
        "    return 1.0\n"
    )
    pins = {
        "coder": await publish(store, "coder", "Write {{language}}.", placeholders=["language"]),
        "judge": await publish(store, "judge", "Judge.", role="judge"),
    }
    rollout = Rollout("t1", mode=Mode.VAL, resources=pins, max_attempts=1)
    team = load_app("app.py:team", folder=tmp_path)
    async with Runner(store, team, isolation="process", processes=1) as runner:
        await store.enqueue([rollout])
        await store.wait([rollout.id], timeout_seconds=60)
        await runner.drain()
    ((attempt,),) = (await store.get_attempts([rollout.id])).values()
    (episode,) = await load_episodes(store, [rollout.id])
    assert model.requests[0].body["messages"] == [{"role": "system", "content": "Write Rust.Judge."}]
    assert [(turn.prompt_name, turn.prompt_version) for turn in episode.turns] == [("coder", 1)]
    (warning,) = attempt.warnings
    assert "no call used prompt 'judge' version 1" in warning


async def test_two_pinned_prompts_for_one_place_fail_the_rollout(store: Store) -> None:
    pins = {"a": await publish(store, "a", "A"), "b": await publish(store, "b", "B")}

    async def team(task: Task) -> float:
        return 1.0

    attempt = await attempt_of(store, team, pins)
    assert (
        "prompt 'a' version 1 and prompt 'b' version 1 are both for the part 'system' of role 'coder'" in attempt.error
    )


# In production


async def test_a_recording_takes_up_the_active_version(store: Store, tmp_path: Path, model: ScriptedModel) -> None:
    first = await publish(store, "coder", "One.")
    second = await publish(store, "coder", "Two.", ResourceStatus.CANDIDATE)
    await publish(store, "never", "Never.", ResourceStatus.CANDIDATE, part="examples")

    def answered() -> str:
        with coterie.record(tmp_path / "team.db", task="t"):
            assert coterie.prompt("coder", "mine") in ("One.", "Two.")
            return ask(model)

    assert await asyncio.to_thread(answered) == "One."
    await store.mark("coder", second, ResourceStatus.ACTIVE)
    assert await asyncio.to_thread(answered) == "Two."
    await store.mark("coder", first, ResourceStatus.ACTIVE)
    assert await asyncio.to_thread(answered) == "One."


async def test_a_recording_takes_up_neither_of_two_for_one_place(
    store: Store, tmp_path: Path, model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(store, "a", "A")
    await publish(store, "b", "B")
    async with coterie.record(tmp_path / "team.db", task="t"):
        assert await asyncio.to_thread(ask, model) == "mine"
    assert "prompt 'a' version 1 and prompt 'b' version 1 are both for the part 'system'" in caplog.text
    async with coterie.record(tmp_path / "team.db", task="t", prompts=["b"]):
        assert await asyncio.to_thread(ask, model) == "B"
    with pytest.raises(ConfigError, match="both for the part 'system'"):
        async with coterie.record(tmp_path / "team.db", task="t", prompts=["a", "b"]):
            pass
