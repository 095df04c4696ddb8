"""Flags: answers of single tasks and endless growth are pointed at; lessons, formats, labels and the seed's own words are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_parts import Told
from planted_team import LEARNED, answer, team_config, write_team

from coterie.testing import ScriptedModel
from coterie.vocabulary import JSON, Task
from coterie_trainers.prompts import best, optimise
from coterie_trainers.prompts.selection.flags import Flag, FlagKind, flags_of
from coterie_trainers.prompts.study import Candidate, Study, TunedPrompt

SEED = Candidate({"coder": "You write SQL for the shop.", "coder/examples": ""})
PROMPTS = {
    "coder": TunedPrompt("coder", "coder"),
    "coder/examples": TunedPrompt("coder/examples", "coder", "examples"),
}


def tasks_of(*pairs: tuple[JSON, JSON], split: str = "val") -> list[Task]:
    plain = [Task(f"plain-{n}", f"Question {n}: how many?", f"answer {n}", split="train") for n in range(20)]
    return [*plain, *(Task(f"{split}-{n}", given, gold, split=split) for n, (given, gold) in enumerate(pairs))]


def flagged(text: str, tasks: list[Task], *, name: str = "coder", **limits: float) -> list[Flag]:
    candidate = Candidate({**SEED.texts, name: text})
    return flags_of(candidate, SEED, PROMPTS, tasks, **limits)  # type: ignore[arg-type]


QUESTION = "Which of the customers from Porto ordered more than twice in the spring of last year?"


def test_a_question_that_is_repeated_is_a_leak() -> None:
    (flag,) = flagged(f"Write SQL. If asked «{QUESTION.upper()}», take the view.", tasks_of((QUESTION, "x")))
    assert flag.kind is FlagKind.LEAK
    assert flag.prompt == "coder"
    assert flag.where == "task 'val-0' of val"
    assert "customers from porto" in str(flag)


def test_fewer_words_are_no_leak() -> None:
    assert flagged("Ask which of the customers from Porto it is about.", tasks_of((QUESTION, "x"))) == []


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (4711, "The answer is 4711."),
        ({"total": 12.75}, "Say 12.75 then."),
        ("1,234,567", "It was 1234567."),
        (["Ada Maria Lovelace"], "Often it is ada  maria lovelace."),
    ],
)
def test_an_answer_that_is_repeated_is_a_leak(reference: JSON, text: str) -> None:
    (flag,) = flagged(text, tasks_of(("How?", reference), split="test"))
    assert "of test" in flag.where


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (7, "Give 7 rows at most."),
        (99, "Never return more than 99."),
        (True, "True if it is so."),
        (None, "None."),
        ("Porto", "Names such as Porto have a capital letter."),
        ("47110", "Use 471 and 10."),
    ],
)
def test_what_may_be_chance_is_none(reference: JSON, text: str) -> None:
    assert flagged(text, tasks_of(("How?", reference))) == []


def test_two_short_answers_are_no_chance() -> None:
    tasks = tasks_of(("Where?", "Porto"), ("Where else?", "Braga"))
    (flag,) = flagged("It is Porto or Braga.", tasks)
    assert "2 references, such as 'porto', 'braga'" in flag.what
    assert flagged("It is Porto.", tasks) == []


def test_what_many_tasks_have_is_no_answer_to_one() -> None:
    label = [Task(f"t{n}", "?", "not entailed by this text" if n % 2 else "entailed", split="val") for n in range(20)]
    assert flagged("Answer 'entailed' or 'not entailed by this text'.", label) == []
    form = "Answer the question below with a single SQL query and nothing else"
    same = [Task(f"t{n}", f"{form}. Q{n}", n, split="val") for n in range(20)]
    assert flagged(f"You are told: {form}.", same) == []


def test_what_the_seed_held_is_nobodys_leak() -> None:
    seed = Candidate({"coder": f"As in: {QUESTION} The answer is 4711."})
    candidate = Candidate({"coder": f"As in: {QUESTION} The answer is 4711. Check it."})
    assert flags_of(candidate, seed, PROMPTS, tasks_of((QUESTION, 4711))) == []


def test_examples_may_hold_train_and_nothing_else() -> None:
    text = f"Q: {QUESTION}\nA: 4711"
    assert flagged(text, tasks_of((QUESTION, 4711), split="train"), name="coder/examples") == []
    found = flagged(text, tasks_of((QUESTION, 4711), split="val"), name="coder/examples")
    assert [flag.what.split()[1] for flag in found] == ["words", "number"]
    assert flagged(text, tasks_of((QUESTION, 4711), split="train")) != []


def test_growth_is_told_with_its_limit() -> None:
    (flag,) = flagged("Check. " * 400, tasks_of())
    assert flag.kind is FlagKind.GROWTH
    assert f"2800 characters, where it had {len(SEED.texts['coder'])}" in flag.what
    assert flagged("Check. " * 250, tasks_of()) == []
    assert flagged("Check. " * 250, tasks_of(), longest=1000)[0].kind is FlagKind.GROWTH
    assert flagged("Q: one\nA: two\n" * 300, tasks_of(), name="coder/examples") == []


def test_an_unchanged_prompt_is_not_looked_at() -> None:
    seed = Candidate({"coder": "x" * 50_000})
    assert flags_of(seed, seed, PROMPTS, tasks_of()) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda each: st.lists(each, max_size=3)
    ),
    st.text(max_size=80),
)
@settings(max_examples=40, deadline=None)
def test_any_task_and_any_text_can_be_compared(reference: JSON, text: str) -> None:
    for flag in flagged(text, tasks_of((text, reference))):
        assert json.dumps(str(flag))


@given(
    st.lists(
        st.sampled_from(["red", "green", "blue", "round", "small", "heavy", "glass", "iron"]), min_size=8, max_size=20
    )
)
@settings(max_examples=20, deadline=None)
def test_eight_words_of_a_task_are_always_found(words: list[str]) -> None:
    found = flagged(f"Remember: {' '.join(words[-8:])}!", tasks_of((" ".join(words), None)))
    assert [flag.kind for flag in found] == [FlagKind.LEAK]


GROWN = Candidate({**LEARNED, "coder": LEARNED["coder"] + " Check." * 500}, author="optimiser:grows")


async def grows(study: Study) -> Sequence[Candidate]:
    """An optimiser that finds what helps, and cannot stop; then the same without the rest."""
    return [GROWN, Candidate(LEARNED, author="optimiser:grows")]


@pytest.mark.parametrize(("flagged", "finalists"), [("report", 1), ("report", 4), ("refuse", 1)])
async def test_a_flagged_finalist_loses_ties_and_may_be_refused(tmp_path: Path, flagged: str, finalists: int) -> None:
    """Real rollouts; the scripted model's answers depend on what the prompts say."""
    told = Told()
    with ScriptedModel(answer) as model:
        folder = write_team(tmp_path, model.base_url, tasks=8)
        config = team_config(
            model.base_url, selection={"flagged": flagged, "finalists": finalists, "test_samples": 1, "gate": "none"}
        )
        run = await optimise("app.py:team", config, folder=folder, work=folder / "work", progress=told, optimiser=grows)
    (warning,) = [line for line in told.warnings if "is flagged" in line]
    assert GROWN.id in warning
    assert "growth in 'coder'" in warning
    assert ("refused" in warning) is (flagged == "refuse")
    assert list(run.summary["flags"]) == [GROWN.id]
    only_grown = flagged == "report" and finalists == 1
    assert best(folder / "work") == (GROWN.texts if only_grown else LEARNED)
