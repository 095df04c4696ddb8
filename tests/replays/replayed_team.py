"""A team of three whose outcome hangs on the coder alone, and a model that draws its answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import openai

import coterie
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, Resource, ResourceKind, Rollout, Task


class DrawnAnswers:
    """Answers ``good`` or ``bad`` at random to everybody. Counts who asked."""

    def __init__(self, seed: int = 0) -> None:
        self.asked: Counter[str] = Counter()
        self._random = random.Random(seed)

    def __call__(self, body: Mapping[str, Any]) -> str:
        self.asked[body["messages"][0]["content"]] += 1
        return f"{self._random.choice(['good', 'bad'])} {self._random.randrange(1000)}"


async def ask(role: str, *said: str, stream: bool = False) -> str:
    """One call of a role that names itself and passes on what was said."""
    messages: Any = [{"role": "system", "content": role}, *({"role": "user", "content": text} for text in said)]
    client = _client()
    with coterie.agent(role):
        if not stream:
            answer = await client.chat.completions.create(model="m", messages=messages)
            return answer.choices[0].message.content or ""
        pieces = await client.chat.completions.create(model="m", messages=messages, stream=True)
        return "".join([piece.choices[0].delta.content or "" async for piece in pieces])


async def play(task: Task) -> float:
    """Planner, coder (streamed), reviewer; won if the coder's code is good."""
    plan = await ask("planner", str(task.input))
    code = await ask("coder", str(task.input), plan, stream=True)
    await ask("reviewer", plan, code)
    return float(code.startswith("good"))


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()
"""A client's connections belong to the event loop of one test."""


def _client() -> openai.AsyncOpenAI:
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=10)
    return _clients[loop]


async def published(store: Store, model: ScriptedModel) -> dict[str, int]:
    """The pins that lead all roles to a model."""
    content = {"base_url": model.base_url, "model": "m", "policy": "team"}
    return {"endpoint/team": (await store.publish(Resource("endpoint/team", ResourceKind.ENDPOINT, content))).version}


def rollouts_of(tasks: list[Task], pins: Mapping[str, int], each: int = 1, mode: Mode = Mode.TRAIN) -> list[Rollout]:
    return [
        Rollout(task.id, mode=mode, run_id="run-1", resources=pins, id=f"ro-{task.id}-{number}")
        for task in tasks
        for number in range(each)
    ]
