from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from plans import Plan
from questions import FAMILIES, SPLITS, TEST_QUERIES, Question, make_splits, write_tasks

from coterie.vocabulary import Task


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Question]]:
    return make_splits()


def test_no_gold_query_is_in_two_splits(splits: dict[str, list[Question]]) -> None:
    queries = {name: {question.gold.sql for question in splits[name]} for name in SPLITS}
    assert not queries["train"] & queries["val"]
    assert not queries["train"] & queries["test"]
    assert not queries["val"] & queries["test"]


def test_no_gold_query_is_the_same_but_for_its_spelling(splits: dict[str, list[Question]]) -> None:
    """One plan a query, one query a plan: otherwise the split by text would leak."""
    of_plan = {(question.gold, question.gold.sql) for name in SPLITS for question in splits[name]}
    assert len({plan for plan, _ in of_plan}) == len({sql for _, sql in of_plan}) == len(of_plan)


def test_no_question_is_asked_twice(splits: dict[str, list[Question]]) -> None:
    questions = [question for name in SPLITS for question in splits[name]]
    assert len({question.text for question in questions}) == len(questions)
    assert len({question.id for question in questions}) == len(questions)


def test_every_answer_is_worth_finding(splits: dict[str, list[Question]]) -> None:
    for name in SPLITS:
        for question in splits[name]:
            rows = question.answer.rows
            assert rows, question.text
            assert rows not in (((None,),), ((0,),)), question.text


def test_hundreds_of_questions_in_families_of_rising_difficulty(splits: dict[str, list[Question]]) -> None:
    assert {family.difficulty for family in FAMILIES} == {1, 2, 3, 4, 5}
    assert len({question.gold.sql for name in SPLITS for question in splits[name]}) > 500
    for name in SPLITS:
        assert {question.family.name for question in splits[name]} == {family.name for family in FAMILIES}
    assert set(Counter(question.family.name for question in splits["test"]).values()) == {2 * TEST_QUERIES}


def test_every_value_of_a_held_out_question_is_known_from_training(splits: dict[str, list[Question]]) -> None:
    known = {value for question in splits["train"] for value in question.values}
    for name in ("val", "test"):
        assert {value for question in splits[name] for value in question.values} <= known


def test_the_longest_and_the_newest_are_not_tied(splits: dict[str, list[Question]]) -> None:
    """A question with two right answers would punish one of them."""
    from database import run_sql

    for question in (question for name in SPLITS for question in splits[name]):
        gold = question.gold
        if gold.ordered:
            key = (gold.ending or "").split()[1]
            rows = run_sql(Plan(gold.tables, key, gold.filters).sql).rows
            assert rows is not None
            assert len(set(rows)) == len(rows), question.text


def test_the_splits_are_the_same_on_every_call(splits: dict[str, list[Question]]) -> None:
    assert make_splits() == splits


def test_the_data_files_hold_tasks(splits: dict[str, list[Question]], tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    write_tasks(splits["val"], path)
    tasks = [Task(**json.loads(line)) for line in path.read_text().splitlines()]
    assert [task.id for task in tasks] == [question.id for question in splits["val"]]
    assert all(set(task.input) == {"question"} for task in tasks), "the team must not see the gold query"
    assert tasks[0].metadata["family"] == splits["val"][0].family.name


def test_plans_read_back_as_written(splits: dict[str, list[Question]]) -> None:
    for question in splits["val"] + splits["test"]:
        assert Plan.parse(str(question.gold)) == question.gold


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ok",
        "albums ; album",
        "nowhere ; album ; all",
        " ; count(*) ; all",
        "albums ; album ; all ; limit 3",
        "a ; " * 9,
    ],
)
def test_what_is_no_plan_is_none(text: str) -> None:
    assert Plan.parse(text) is None
