"""Examples from successful episodes, on a written study: who won what, and what the roles said, stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from written_study import WrittenStudy, turn_of

from coterie.episodes import Episode
from coterie.errors import ConfigError
from coterie.prompts import render
from coterie.vocabulary import Task
from coterie_trainers.prompts.optimisers.bootstrap import make
from coterie_trainers.prompts.study import Trial, TunedPrompt

TUNED = {
    "writer": TunedPrompt("writer", "writer"),
    "writer/examples": TunedPrompt("writer/examples", "writer", part="examples"),
    "checker/examples": TunedPrompt("checker/examples", "checker", part="examples"),
}
SEED = {"writer": "Write.", "writer/examples": "", "checker/examples": ""}


def odd_wins(texts: Mapping[str, str], task: Task) -> dict[str, float]:
    return {"team": float(task.input % 2), "writer": float(task.input % 4 == 1)}


class Told(WrittenStudy):
    """One whose episodes are given by a function of the task."""

    def __init__(self, episode: Any, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._given = episode

    async def episodes(self, trials: Sequence[Trial]) -> Sequence[Episode]:
        return [replace(self._episode(trial), turns=self._given(trial.task)) for trial in trials]


def study_of(worth: Any = odd_wins, **more: Any) -> WrittenStudy:
    return WrittenStudy(SEED, worth, tuned=TUNED, train=more.pop("train", 40), **more)


async def test_a_role_is_shown_only_episodes_that_the_team_won_and_it_did_well_in():
    study = study_of()
    finalists = await make(examples=20)(study)
    assert finalists
    for candidate in finalists:
        inputs = {name: _inputs(text) for name, text in candidate.texts.items() if name != "writer"}
        assert inputs["writer/examples"]
        assert all(number % 4 == 1 for number in inputs["writer/examples"])
        assert all(number % 2 == 1 for number in inputs["checker/examples"])
        assert candidate.texts["writer"] == "Write."
        assert set(candidate.why) == {"writer/examples", "checker/examples"}
    assert {number % 4 for each in finalists for number in _inputs(each.texts["checker/examples"])} == {1, 3}


async def test_no_task_is_shown_that_a_set_is_compared_on_and_none_of_validation():
    study = study_of()
    finalists = await make(sets=5)(study)
    pool = {task for id_, task, _ in study.played if id_ == study.seed.id}
    compared = {task for id_, task, _ in study.played if id_ != study.seed.id}
    shown = {f"train-{n}" for each in finalists for name in each.why for n in _inputs(each.texts[name])}
    assert shown <= pool
    assert not pool & compared
    assert {trial.task.split for trial in study.played.values()} == {"train"}
    assert len(compared) == 16


async def test_the_sets_that_do_best_on_the_comparison_tasks_come_first():
    """The largest input that is shown says what a set is worth."""

    def worth(texts: Mapping[str, str], task: Task) -> dict[str, float]:
        return {"team": max(_inputs(texts["writer/examples"]), default=100)}

    finalists = await make(examples=3, sets=20)(study_of(worth))
    largest = [max(_inputs(each.texts["writer/examples"])) for each in finalists]
    assert len(largest) == 3
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > 35


async def test_of_equals_the_shorter_set_comes_first():
    finalists = await make(sets=10, finalists=10)(study_of())
    lengths = [sum(map(len, each.texts.values())) for each in finalists]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 1


async def test_examples_are_spread_over_the_inputs():
    """Nine of ten inputs say nearly the same; a set of two always holds the tenth."""

    def turns(task: Task) -> list[Any]:
        about = "quite another matter here" if task.input % 10 == 0 else f"the same old question again {task.input}"
        return [turn_of("writer", about, "said"), turn_of("checker", "x", "said", 1)]

    study = Told(turns, SEED, lambda texts, task: {"team": 1.0}, tuned=TUNED, train=60)
    finalists = await make(examples=2, sets=1)(study)
    assert "another matter" in finalists[0].texts["writer/examples"]
    assert finalists[0].texts["checker/examples"].count("Input:") == 1  # one input, one example


async def test_an_example_is_the_last_answer_in_words_and_what_had_been_said_until_then():
    def turns(task: Task) -> list[Any]:
        call = {"tool_calls": [{"function": {"name": "search"}}]}
        history = [
            {"role": "system", "content": "secret text of the prompt"},
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": "search it"},
            {"role": "tool", "content": "found"},
        ]
        return [
            turn_of("writer", "question", "search it", 0, output=[call]),
            turn_of("writer", "", "the answer", 1, messages=history),
            turn_of("writer", "more", "calls a tool", 2, output=[call]),
            turn_of("writer", "more", "", 3, error="no answer"),
        ]

    study = Told(turns, SEED, lambda texts, task: {"team": 1.0}, tuned=TUNED)
    (best,) = await make()(study)
    text = best.texts["writer/examples"]
    assert "Input:\nuser: question\nassistant: search it\ntool: found\nOutput:\nthe answer" in text
    assert "secret" not in text
    assert best.texts["checker/examples"] == ""
    assert "no example for 'checker/examples'" in study.notes[0]


async def test_what_looks_like_a_placeholder_in_an_example_stays_text():
    said = 'Say {{name}} and \\{{other}} and {"json": "{x}"} „so“.'
    study = Told(lambda task: [turn_of("writer", "q", said)], SEED, lambda t, task: {"team": 1.0}, tuned=TUNED)
    (best,) = await make()(study)
    assert said in render(best.texts["writer/examples"], {})


async def test_examples_are_whole_and_within_their_length():
    def turns(task: Task) -> list[Any]:
        return [turn_of("writer", f"input {task.input}", "x" * (2000 if task.input % 2 else 200))]

    study = Told(turns, SEED, lambda texts, task: {"team": 1.0}, tuned=TUNED, train=40)
    finalists = await make(examples=9, max_chars=1000, sets=4)(study)
    for each in finalists:
        text = each.texts["writer/examples"]
        assert len(text) <= 1000
        assert text.count("Input:") == text.count("x" * 200) >= 1


@pytest.mark.parametrize(("rollouts", "some"), [(10, False), (19, False), (24 + 16 * 3, True)])
async def test_when_the_budget_is_spent_the_sets_that_were_compared_are_given(rollouts, some):
    study = study_of(rollouts=rollouts)
    finalists = await make(finalists=9)(study)
    assert bool(finalists) is some
    assert len(finalists) <= 3
    assert "the budget is spent" in study.notes[-1]


async def test_the_same_seed_gives_the_same_sets_and_another_seed_others():
    async def found(seed: int) -> list[str]:
        return [each.id for each in await make()(study_of(seed=seed))]

    assert await found(1) == await found(1) != await found(2)


async def test_without_a_win_there_is_no_finalist_and_the_reason_is_told():
    study = study_of(lambda texts, task: {"team": 0.5})
    assert await make()(study) == []
    assert "0 reached the score 1" in study.notes[0]
    assert await make(won=0.5)(study)


async def test_what_cannot_work_is_refused_before_any_rollout():
    without = WrittenStudy({"writer": "Write."}, odd_wins)
    with pytest.raises(ConfigError, match="no tuned prompt has the part 'examples'; there are: writer"):
        await make()(without)
    with pytest.raises(ConfigError, match="only one train task"):
        await make()(study_of(train=1))
    filled = {"e": TunedPrompt("e", "writer", part="examples", placeholders=("topic",))}
    with pytest.raises(ConfigError, match="has placeholders"):
        await make()(WrittenStudy({"e": "{{topic}}"}, odd_wins, tuned=filled))
    with pytest.raises(ConfigError, match="'bootstrap': unknown key 'example', did you mean 'examples'"):
        make(example=3)


def _inputs(text: str) -> list[int]:
    return [int(line.removeprefix("input ")) for line in text.splitlines() if line.startswith("input ")]
