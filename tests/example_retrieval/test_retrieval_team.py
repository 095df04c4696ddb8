"""The corpus and its real index, the judge, and the real graph against a scripted model behind a real socket."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from example_modules import EXAMPLES, example_modules
from hypothesis import given
from hypothesis import strategies as st
from scripted_readers import ALONE, ANSWERS, answer

import coterie
from coterie.assembly import build_episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Reward, Task

pytest.importorskip("langchain_openai")

EXAMPLE = EXAMPLES / "retrieval_answers"


@pytest.fixture
def modules() -> Iterator[Callable[[str], ModuleType]]:
    with pytest.MonkeyPatch.context() as patch, ScriptedModel(answer) as model:
        patch.setenv("OPENAI_API_KEY", "unused")
        patch.setenv("OPENAI_BASE_URL", model.base_url)
        with example_modules("retrieval_answers") as module:
            yield module


@pytest.fixture(scope="module")
def corpus() -> Iterator[ModuleType]:
    with example_modules("retrieval_answers") as module:
        yield module("corpus")


def tasks(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / "tasks" / f"{split}.jsonl").read_text().splitlines()]


def test_every_answer_stands_in_the_corpus_and_most_are_found_by_the_question(
    modules: Callable[[str], ModuleType],
) -> None:
    holds, index = modules("judge").holds, modules("corpus").index()
    found = 0
    for question, answers in ANSWERS.items():
        where = [passage.id for passage in index if holds(passage, answers)]
        assert where, (
            f"no page says {answers[0]!r}, which {question!r} asks for: correct the task in examples/retrieval_answers"
        )
        found += any(holds(passage, answers) for passage in index.search(question))
    assert found / len(ANSWERS) > 0.8


def test_the_splits_share_no_question() -> None:
    found = [task for split in ("train", "val", "test") for task in tasks(split)]
    assert len(found) == len({task["id"] for task in found}) == len(ANSWERS) >= 30
    assert min(len(tasks(split)) for split in ("train", "val", "test")) >= 10


def test_a_passage_is_found_by_its_words_and_by_its_id(corpus: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bees.md").write_text("# Bees\n\nThey dance.\n\n```\n# no heading\n```\n\n## Honey\n\nIt is sweet.\n")
    (tmp_path / "ants").mkdir()
    (tmp_path / "ants" / "walk.md").write_text("Ants are walking in rows.")
    index = corpus.Index(tmp_path)
    assert [passage.id for passage in index] == ["ants/walk#top", "bees#bees", "bees#honey"]
    assert [passage.id for passage in index.search("who walked?")] == ["ants/walk#top"]
    assert [passage.id for passage in index.search('"in rows" honey')] == ["bees#honey", "ants/walk#top"]
    assert "# no heading" in index.get("[bees#bees]").text
    assert index.search("") == index.search("?!") == index.search("zebra") == []
    with pytest.raises(RuntimeError, match="no Markdown pages"):
        corpus.Index(tmp_path / "bees.md")


@given(query=st.text())
def test_whatever_a_model_writes_can_be_searched_for(corpus: ModuleType, query: str) -> None:
    assert len(corpus.index().search(f"{query} NEAR( AND * \" ' col:")) <= corpus.FOUND


@pytest.mark.parametrize(
    ("said", "text", "cited"),
    [
        ("ANSWER: 4747\nCITE: [operations#limits]", "4747", "operations#limits"),
        ("**Answer:** 4747\n- cite: `operations#limits`.", "** 4747", "operations#limits"),
        ("It is 4747.", "It is 4747.", ""),
        ("", "", ""),
    ],
)
def test_answers_are_read(modules: Callable[[str], ModuleType], said: str, text: str, cited: str) -> None:
    assert modules("agents").read_answer(said) == {"text": text, "cited": cited}


@pytest.mark.parametrize(
    ("text", "right"),
    [("4747", True), (" `4747`. ", True), ("port 4747", False), ("47", False), ("4,747", False), ("", False)],
)
def test_only_the_answer_alone_is_right(modules: Callable[[str], ModuleType], text: str, right: bool) -> None:
    assert modules("judge").is_right({"text": text, "cited": ""}, ["4747"]) is right


def test_a_right_answer_needs_a_passage_that_was_found_and_holds_it(modules: Callable[[str], ModuleType]) -> None:
    judge, passage = modules("judge"), modules("corpus").Passage
    good, other = passage("a#1", "a", "The port is 4747."), passage("b#1", "b", "The port is 14747.")
    backed = [
        judge.is_backed({"text": "4747", "cited": id_}, [good, other], ["4747"]) for id_ in ("a#1", "b#1", "c#1", "")
    ]
    assert backed == [True, False, False, False]


async def played(modules: Callable[[str], ModuleType], id_: str) -> tuple[Any, Mapping[str | None, Reward]]:
    """One attempt: its episode, and its rewards by role."""
    task = Task(**next(task for split in ("train", "val", "test") for task in tasks(split) if task["id"] == id_))
    sink = ListSink()
    coterie.instrument()
    try:
        with attempt_scope(scope_for_test(sink)):
            await modules("app").team(task=task)
    finally:
        coterie.uninstrument()
    episode = build_episode(task.id, "at-test", "ro-test", sink.spans, sink.rewards)
    return episode, {reward.role: reward for reward in sink.rewards}


async def test_each_role_is_rewarded_for_its_own_part_with_the_reason(modules: Callable[[str], ModuleType]) -> None:
    episode, rewards = await played(modules, "port")
    assert [turn.role for turn in episode.turns] == ["searcher", "answerer", "checker"]
    assert {role: reward.value for role, reward in rewards.items()} == {
        "searcher": 1.0,
        "answerer": 0.0,
        "checker": 0.0,
        None: 0.0,
    }
    assert "right is exactly '4747'" in str(rewards["answerer"].explanation)
    assert "accepted an answer that is wrong" in str(rewards["checker"].explanation)
    assert "stands in operations#" in str(rewards["searcher"].explanation)


async def test_the_answer_alone_wins(modules: Callable[[str], ModuleType]) -> None:
    agents = modules("agents")
    agents.PROMPTS["answerer"] += f" {ALONE}"
    _, rewards = await played(modules, "port")
    assert {reward.value for reward in rewards.values()} == {1.0}


async def test_what_is_sent_back_is_searched_for_once_more(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents, asked = modules("agents"), []

    async def said(role: str, text: str) -> str:
        asked.append((role, text))
        return {"searcher": "zebra", "answerer": "ANSWER: not found", "checker": "the port is missing"}[role]

    monkeypatch.setattr(agents, "ask", said)
    _, rewards = await played(modules, "port")
    assert [role for role, _ in asked] == ["searcher", "answerer", "checker"] * 2
    assert "What is missing: the port is missing" in asked[3][1]
    assert {role: reward.value for role, reward in rewards.items()} == {
        "searcher": 0.0,
        "answerer": 1.0,
        "checker": 1.0,
        None: 0.0,
    }


def test_the_agents_know_nothing_of_coterie() -> None:
    tree = ast.parse((EXAMPLE / "agents.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("coterie") for name in imported)
