"""The real graph with the real langchain-openai client, against a scripted model behind a real socket."""

from __future__ import annotations

import ast
import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from judge import judge
from questions import Question, make_splits

from coterie.apps import load_app
from coterie.testing import ScriptedModel
from coterie.vocabulary import Task
from coterie_trainers.config_file import load_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_to_sql"

# langchain-openai keeps its HTTP client for the life of the process, and a client keeps to one event loop.
one_loop = pytest.mark.asyncio(loop_scope="module")

ROLE_OF = {"Plan the query.": "analyst", "Write the SQL.": "coder", "Accept or correct.": "reviewer"}


@contextmanager
def team_of(
    answers: dict[str, list[str]] | Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ModuleType, list[tuple[str, str]]]]:
    """The agents with a model that answers from lists by role, or by a function; and the calls it got."""
    calls: list[tuple[str, str]] = []

    def answer(body: dict[str, Any]) -> str:
        system, user = (message["content"] for message in body["messages"])
        role = ROLE_OF[system]
        calls.append((role, user))
        return answers(role, user) if callable(answers) else answers[role].pop(0)

    with ScriptedModel(answer) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        sys.modules.pop("agents", None)
        try:
            yield importlib.import_module("agents"), calls
        finally:
            sys.modules.pop("agents", None)


@pytest.fixture(scope="module")
def question() -> Question:
    return next(question for question in make_splits()["train"] if question.family.name == "newest_record")


@one_loop
async def test_an_accepted_query_takes_three_calls(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"analyst": [str(question.gold)], "coder": [question.gold.sql], "reviewer": [f"{question.gold} : ok"]}
    with team_of(answers, monkeypatch) as (agents, calls):
        state = await agents.graph.ainvoke({"question": question.text})
    assert calls == [
        ("analyst", question.text),
        ("coder", f"{question.text}\n{question.gold}"),
        ("reviewer", f"{question.text}\n{question.gold.sql}"),
    ]
    assert judge(question.task["reference"], state) == {"team": 1, "analyst": 1, "coder": 1, "reviewer": 1}


@one_loop
async def test_a_query_is_sent_back_exactly_once(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reviewer would go on sending back for ever, if it were asked."""
    plan = str(question.gold)
    wrong = plan.replace("desc", "asc")
    answers = {
        "analyst": [wrong],
        "coder": [question.gold.sql.replace("desc", "asc"), question.gold.sql, "never asked"],
        "reviewer": [f"{plan} : fix", f"{wrong} : fix"],
    }
    with team_of(answers, monkeypatch) as (agents, calls):
        state = await agents.graph.ainvoke({"question": question.text})
    assert [role for role, _ in calls] == ["analyst", "coder", "reviewer", "coder"]
    assert calls[-1] == ("coder", f"{question.text}\n{plan}")
    assert state["plans"] == [wrong, plan]
    assert judge(question.task["reference"], state) == {"team": 1, "analyst": 0, "coder": 1, "reviewer": 1}


@one_loop
@pytest.mark.parametrize("review", ["", "nonsense", "fix", "OK, fix it", "albums ; album ; all : fix it"])
async def test_an_unclear_review_ends_the_run(question: Question, review: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"analyst": [str(question.gold)], "coder": [question.gold.sql], "reviewer": [review]}
    with team_of(answers, monkeypatch) as (agents, calls):
        state = await agents.graph.ainvoke({"question": question.text})
    assert len(calls) == 3
    assert judge(question.task["reference"], state) == {"team": 1, "analyst": 1, "coder": 1, "reviewer": 0}


@one_loop
async def test_a_model_that_answers_nothing_is_judged_as_wrong(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    with team_of(lambda _role, _user: "", monkeypatch) as (agents, _):
        state = await agents.graph.ainvoke({"question": question.text})
    assert judge(question.task["reference"], state) == {"team": 0, "analyst": 0, "coder": 0, "reviewer": 0}


@one_loop
async def test_runs_side_by_side_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A perfect model answers each question by its own text: one mixed up would be wrong."""
    questions = make_splits()["val"]
    gold = {question.text: question.gold for question in questions}

    def answer(role: str, user: str) -> str:
        plan = gold[user.split("\n")[0]]
        return {"analyst": str(plan), "coder": plan.sql, "reviewer": f"{plan} : ok"}[role]

    with team_of(answer, monkeypatch) as (agents, calls):
        states = await asyncio.gather(*(agents.graph.ainvoke({"question": question.text}) for question in questions))
    assert len(calls) == 3 * len(questions)
    for question, state in zip(questions, states, strict=True):
        assert judge(question.task["reference"], state)["team"] == 1, question.text


@one_loop
async def test_the_rollout_function_gives_the_rewards(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"analyst": [str(question.gold)], "coder": [question.gold.sql], "reviewer": [f"{question.gold} : ok"]}
    with team_of(answers, monkeypatch):
        team = load_app("app.py:team", folder=EXAMPLE)
        rewards = await team(task=Task(**question.task))
    assert rewards == {"team": 1, "analyst": 1, "coder": 1, "reviewer": 1}


def test_the_configuration_is_valid() -> None:
    config = load_config(EXAMPLE / "config.yaml")
    assert config.prepare == "model.py:prepare"
    assert config.training.balance == "family"


def test_the_agents_know_nothing_of_coterie() -> None:
    tree = ast.parse((EXAMPLE / "agents.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {
        "__future__",
        "operator",
        "typing",
        "langchain_openai",
        "langgraph",
    }
