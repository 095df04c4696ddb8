"""The team end to end: the real OpenAI SDK against a scripted model behind a real socket, real z3, and ``coterie optimize``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from example_modules import EXAMPLES, example_modules
from scripted_authors import LOOPS, OPEN, answer

import coterie
from coterie.assembly import build_episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Reward, Task

pytest.importorskip("z3")


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, model: ScriptedModel) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
    with example_modules("verified_code") as module:
        yield module


def task_named(name: str) -> Task:
    lines = [line for path in EXAMPLES.glob("verified_code/tasks/*.jsonl") for line in path.read_text().splitlines()]
    return Task(**next(task for task in map(json.loads, lines) if task["id"] == name))


async def played(modules: Callable[[str], ModuleType], name: str) -> tuple[Any, Mapping[str | None, Reward]]:
    """One attempt: its episode, and its rewards by role."""
    sink = ListSink()
    app, agents = modules("app"), modules("agents")
    coterie.instrument()
    try:
        with attempt_scope(scope_for_test(sink)):
            await app.team(task=task_named(name))
    finally:
        coterie.uninstrument()
        await agents.client.close()
    episode = build_episode(name, "at-test", "ro-test", sink.spans, sink.rewards)
    return episode, {reward.role: reward for reward in sink.rewards}


def tell(monkeypatch: pytest.MonkeyPatch, agents: ModuleType, **added: str) -> None:
    """Add words to roles' prompts."""
    written = agents.written_prompt
    monkeypatch.setattr(
        agents, "written_prompt", lambda role, language: f"{written(role, language)} {added.get(role, '')}".strip()
    )


async def test_what_a_role_was_not_told_is_in_the_explanation_of_its_own_reward(
    modules: Callable[[str], ModuleType],
) -> None:
    episode, rewards = await played(modules, "root")
    assert [turn.role for turn in episode.turns] == ["specifier", "coder", "repairer", "repairer"]
    assert {role: reward.value for role, reward in rewards.items()} == {
        "specifier": 0.5,
        "coder": 0.0,
        "repairer": 0.0,
        None: 0.0,
    }
    assert "allows too much" in str(rewards["specifier"].explanation)
    assert "counterexample: " in str(rewards["specifier"].explanation)
    assert "needs one decreases" in str(rewards["coder"].explanation)


async def test_told_so_it_proves_the_program_at_once(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, modules("agents"), coder=LOOPS, specifier=OPEN)
    episode, rewards = await played(modules, "root")
    assert [turn.role for turn in episode.turns] == ["specifier", "coder"]
    assert {role: reward.value for role, reward in rewards.items()} == {"specifier": 1.0, "coder": 1.0, None: 1.0}


async def test_a_program_for_a_weak_contract_does_not_win(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, model: ScriptedModel
) -> None:
    agents = modules("agents")

    async def said(role: str, text: str, verifier: object) -> str:
        return {"specifier": "ensures result >= 0", "coder": "def half(n):\n    return 0"}[role]

    monkeypatch.setattr(agents, "ask", said)
    _, rewards = await played(modules, "half")
    assert rewards["coder"].value == 1.0
    assert rewards["specifier"].value == 0.5
    assert rewards[None].value == 0.0
    assert "counterexample: n = " in str(rewards[None].explanation)


@pytest.mark.parametrize("contract", ["I cannot say.", "ensures result ==", "ensures unknown > 3", "ensures open('x')"])
async def test_a_contract_that_cannot_be_read_costs_the_specifier_alone(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, contract: str
) -> None:
    agents = modules("agents")

    async def said(role: str, text: str, verifier: object) -> str:
        return contract if role == "specifier" else "def distance(a, b):\n    return abs(a - b)"

    monkeypatch.setattr(agents, "ask", said)
    _, rewards = await played(modules, "distance")
    assert rewards["specifier"].value == 0.0
    assert rewards[None].value == 1.0
