"""A LangGraph team with a tool is played again: through ChatOpenAI, an agent loop, and ids of tool calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from replayed_team import published

import coterie
from coterie.assembly import load_episodes
from coterie.replays import Replay
from coterie.runner import Runner
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, Rollout, RolloutState, Task

pytest.importorskip("langchain_openai")
pytest.importorskip("langgraph")

pytestmark = pytest.mark.usefixtures("captured")


def answer(body: dict[str, Any]) -> Any:
    """The counter looks first and then says what it found; the speaker passes it on."""
    roles = [message["role"] for message in body["messages"]]
    if "tool" in roles:
        return "I count four"
    return (
        {"content": "", "tool_calls": [{"name": "look", "arguments": {"at": "cats"}}]} if body.get("tools") else "four"
    )


def team() -> Any:
    from langchain.agents import create_agent
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="m", base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=10)

    @tool
    def look(at: str) -> str:
        """Look at something."""
        return f"four {at}"

    counter = create_agent(model, [look], system_prompt="Count.", name="counter")
    speaker = create_agent(model, [], system_prompt="Speak.", name="speaker")

    async def play(task: Task) -> float:
        found = await counter.ainvoke({"messages": [("user", str(task.input))]})
        said = await speaker.ainvoke({"messages": [("user", found["messages"][-1].text)]})
        return float("four" in said["messages"][-1].text)

    return coterie.rollout(play)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with coterie.connect(tmp_path / "store.db") as opened:
        await opened.add_tasks([Task("t1", "How many cats?")])
        yield opened


async def test_the_tool_call_is_given_again_and_the_masked_speaker_says_nothing(store):
    function = team()
    with ScriptedModel(answer) as model:
        async with Runner(store, function) as runner:
            pins = await published(store, model)
            await store.enqueue([Rollout("t1", id="ro-then", resources=pins)])
            await store.wait(["ro-then"], timeout_seconds=60)
            (then,) = await load_episodes(store, ["ro-then"])
            asked = len(model.requests)
            replays = [
                Replay("ro-then", then.attempt_id, 3),
                Replay("ro-then", then.attempt_id, 2, masked_role="speaker", mask_text="nothing"),
            ]
            again = [Rollout("t1", mode=Mode.AUDIT, resources=pins, metadata=each.as_metadata()) for each in replays]
            await store.enqueue(again)
            ended = await store.wait([rollout.id for rollout in again], timeout_seconds=60)
            await runner.drain()
        assert len(model.requests) == asked == 3
    assert [rollout.state for rollout in ended] == [RolloutState.SUCCEEDED] * 2, ended
    whole, masked = await load_episodes(store, [rollout.id for rollout in again])
    assert (whole.diverged, masked.diverged) == (None, None)
    assert [turn.output for turn in whole.turns] == [turn.output for turn in then.turns]
    assert [call.result for call in whole.tool_calls] == [call.result for call in then.tool_calls]
    assert [turn.answered_by for turn in masked.turns] == ["recording", "recording", "mask"]
    assert [episode.rewards[0].value for episode in (then, whole, masked)] == [1.0, 1.0, 0.0]
