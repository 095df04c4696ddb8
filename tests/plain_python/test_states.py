"""``coterie.state``: which state a call was made in."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI

import coterie
from coterie.assembly import build_episode
from coterie.testing import ListSink, ScriptedModel


async def ask(model: ScriptedModel, text: str) -> None:
    async with AsyncOpenAI(base_url=model.base_url, api_key="unused") as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])


def states_of(sink: ListSink) -> dict[str, str | None]:
    """What was asked → the state in which it was asked."""
    episode = build_episode("t", "at-test", "ro-test", sink.spans, sink.rewards)
    return {turn.text.removeprefix("said: "): turn.state_key for turn in episode.turns}


async def test_the_inner_block_holds_and_ends(sink: ListSink, model: ScriptedModel) -> None:
    with coterie.state("hall"):
        await ask(model, "1")
        with coterie.state("cellar"):
            await ask(model, "2")
        await ask(model, "3")
    await ask(model, "4")
    assert states_of(sink) == {"1": "hall", "2": "cellar", "3": "hall", "4": None}


async def test_tasks_side_by_side_do_not_mix(sink: ListSink, model: ScriptedModel) -> None:
    async def visit(room: str) -> None:
        with coterie.state(room):
            await asyncio.sleep(0)
            await ask(model, room)

    rooms = [f"room {number}" for number in range(12)]
    await asyncio.gather(*map(visit, rooms))
    assert states_of(sink) == dict(zip(rooms, rooms, strict=True))


async def test_a_long_observation_is_recorded_as_a_digest(sink: ListSink, model: ScriptedModel) -> None:
    for name, observation in {"one": "a" * 500, "same": "a" * 500, "other": "a" * 499 + "b"}.items():
        with coterie.state(observation):
            await ask(model, name)
    states = states_of(sink)
    assert states["one"] == states["same"] != states["other"]
    assert all(len(key or "") == 32 for key in states.values())


async def test_what_may_not_be_recorded_is_not(sink: ListSink, model: ScriptedModel) -> None:
    coterie.uninstrument()
    coterie.instrument(mask=lambda text: text.replace("Mallory", "***"))
    with coterie.state("Mallory's room"):
        await ask(model, "who?")
    (key,) = states_of(sink).values()
    assert key is not None
    assert "Mallory" not in key
