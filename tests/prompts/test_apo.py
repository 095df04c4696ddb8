"""Textual gradients and beam search on a written study: what is worth what, and what is reflected, stands here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from written_study import WrittenStudy

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.prompts.optimisers.apo import make
from coterie_trainers.prompts.study import ReflectionError, TunedPrompt

SEED = {"writer": "Write.", "checker": "Check."}
LESSONS = {"writer": "Cite the source.", "checker": "Count twice."}


def worth(texts: Mapping[str, str], task: Task) -> dict[str, float]:
    """Each role's lesson in its own prompt makes that role good, and the team is as good as its roles."""
    own = {role: float(lesson in texts[role]) for role, lesson in LESSONS.items()}
    return {**own, "team": sum(own.values()) / 2}


def reflecting(question: str) -> str:
    """Sees the role and its failures in the question, names the role's lesson, and puts a lesson that it is told in."""
    role = "writer" if "the role writer" in question else "checker"
    if "<critique>" not in question:
        return LESSONS[role] if f"{role} on" in question else "Nothing to see."
    current = re.search(r"<current>\n(.*?)\n</current>", question, re.DOTALL)
    critique = re.search(r"<critique>\n(.*?)\n</critique>", question, re.DOTALL)
    assert current
    assert critique
    return f"Here it is.\n<prompt>{current[1]} {critique[1]}</prompt>"


async def test_the_lessons_of_both_roles_come_together_over_the_rounds():
    study = WrittenStudy(SEED, worth, reflecting)
    finalists = await make(beam=2, branch=2, rounds=2)(study)
    best = finalists[0]
    assert all(lesson in best.texts[role] for role, lesson in LESSONS.items())
    assert best.author == "optimiser:apo"
    assert best.why == LESSONS
    (parent,) = best.parents
    assert parent in study.texts
    assert parent != study.seed.id
    assert study.seed.id not in [candidate.id for candidate in finalists]
    assert {trial.task.split for trial in study.played.values()} == {"train", "val"}


async def test_reflections_see_train_tasks_only_and_a_round_costs_what_its_settings_say():
    study = WrittenStudy(SEED, lambda texts, task: {"team": 0.0}, reflecting, train=50, val=50)
    await make(beam=3, branch=2, rounds=1, gradient_batch=4, validation_batch=5)(study)
    assert Counter(purpose for purpose, _ in study.questions) == {"apo gradient": 6, "apo edit": 6}
    on_train = {key for key in study.played if key[1].startswith("train")}
    assert len(on_train) <= 6 * 4
    # The six branches found two different texts: those and the seed play.
    assert len(study.played) - len(on_train) == 3 * 5


@pytest.mark.parametrize(("edits", "edited"), [("worst", {"checker"}), ("turn", {"writer", "checker"})])
async def test_which_prompt_a_branch_edits_is_a_setting(edits, edited):
    scores = {"team": 0.0, "writer": 1.0, "checker": 0.0}
    study = WrittenStudy(SEED, lambda texts, task: scores, reflecting)
    await make(edits=edits, beam=1, rounds=1)(study)
    roles = {match[1] for _, text in study.questions if (match := re.search(r"the role (\w+)", text))}
    assert roles == edited


async def test_two_prompts_that_must_change_together_are_found_where_a_branch_edits_all():
    def both(texts: Mapping[str, str], task: Task) -> dict[str, float]:
        return {"team": float(all(lesson in texts[role] for role, lesson in LESSONS.items()))}

    study = WrittenStudy(SEED, both, reflecting)
    (best,) = await make(edits="all", beam=1, branch=1, rounds=1)(study)
    assert dict(best.texts) == {role: f"{SEED[role]} {lesson}" for role, lesson in LESSONS.items()}
    alone = WrittenStudy(SEED, both, reflecting)
    assert await make(edits="turn", beam=1, branch=2, rounds=1)(alone) == []


async def test_of_equals_the_older_candidate_stays():
    study = WrittenStudy(SEED, lambda texts, task: {"team": 0.5}, reflecting)
    assert await make(beam=1, rounds=2)(study) == []


async def test_placeholders_are_kept_and_a_proposal_without_them_is_asked_for_once_more():
    prompts = {"writer": "Write about {{topic}}."}
    answers = iter(["It is vague.", "<prompt>Write.</prompt>", '<prompt>Write {"a": "{b}"} of {{topic}}.</prompt>'])
    study = WrittenStudy(
        prompts,
        lambda texts, task: {"team": float("{b}" in texts["writer"])},
        lambda question: next(answers),
        tuned={"writer": TunedPrompt("writer", "writer", placeholders=("topic",))},
    )
    (best,) = await make(beam=1, branch=1, rounds=1)(study)
    assert best.texts["writer"] == 'Write {"a": "{b}"} of {{topic}}.'
    assert "{{topic}}" in study.questions[1][1]
    assert "lacks {{topic}}" in study.questions[2][1]


@pytest.mark.parametrize(
    "answer", ["", "I cannot help with that.", "<prompt> </prompt>", "<prompt>{{nobody}}</prompt>"]
)
async def test_a_reflecting_model_that_answers_nonsense_costs_the_branch_and_is_told(answer):
    study = WrittenStudy({"writer": "Write."}, lambda texts, task: {"team": 0.0}, lambda question: answer or "vague")
    assert await make(beam=1, branch=1, rounds=1)(study) == []
    assert "cannot be used" in study.notes[0]
    assert len(study.questions) == 3


async def test_a_reflecting_model_that_refuses_costs_the_branch_and_is_told():
    def refuses(question: str) -> str:
        raise ReflectionError("the model refused")

    study = WrittenStudy({"writer": "Write."}, lambda texts, task: {"team": 0.0}, refuses)
    assert await make(beam=1, branch=2, rounds=1)(study) == []
    assert study.notes == ["apo gradient of 'writer': the model refused"] * 2


async def test_paraphrases_are_candidates_of_their_own():
    def answers(question: str) -> str:
        if "in other words" in question:
            return f"<prompt>{LESSONS['writer']} (otherwise)</prompt>"
        return reflecting(question)

    def prefers(texts: Mapping[str, str], task: Task) -> dict[str, float]:
        return {"team": float("otherwise" in texts["writer"])}

    study = WrittenStudy({"writer": "Write."}, prefers, answers)
    best = (await make(beam=1, branch=1, rounds=1, paraphrases=1)(study))[0]
    assert best.texts["writer"] == "Cite the source. (otherwise)"
    assert best.why == {"writer": "Cite the source."}


@pytest.mark.parametrize(("rollouts", "reflections"), [(0, 99), (20, 99), (40, 99), (99, 3), (99, 6)])
async def test_when_the_budget_is_spent_the_best_so_far_is_given(rollouts, reflections):
    study = WrittenStudy(SEED, worth, reflecting, rollouts=rollouts, reflections=reflections)
    finalists = await make(beam=2, branch=2, rounds=3)(study)
    assert study.rollouts_left >= 0
    assert "the budget is spent in round" in study.notes[-1]
    assert all(candidate.id in study.texts for candidate in finalists)


async def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    async def questions(seed: int) -> list[tuple[str, str]]:
        study = WrittenStudy(SEED, worth, reflecting, train=40, seed=seed)
        await make(beam=2, branch=2, rounds=2)(study)
        return study.questions

    assert await questions(1) == await questions(1) != await questions(2)


async def test_its_templates_may_be_texts_or_files(tmp_path: Path):
    file = tmp_path / "edit.txt"
    file.write_text("MINE <critique>\n{{critique}}\n</critique> <current>\n{{prompt}}\n</current> the role {{role}}")
    study = WrittenStudy(SEED, worth, reflecting)
    gradient = "the role {{role}} wrote {{experience}} by {{prompt}}"
    await make(gradient_template=gradient, edit_template=str(file), beam=1, rounds=1)(study)
    question = next(text for purpose, text in study.questions if purpose == "apo edit")
    assert question.startswith("MINE")
    assert question.endswith("nothing else between them.")
    assert study.questions[0][1].startswith("the role writer wrote")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beams": 3}, "unknown key 'beams', did you mean 'beam'"),
        ({"beam": 0}, "beam = 0 is not allowed"),
        ({"edits": "some"}, "edits = 'some' is not allowed"),
        ({"edit_template": "{{prompt}} alone"}, "lacks {{critique}}"),
        ({"edit_template": "{{prompt}} {{critique}} {{score}}"}, "nobody fills {{score}}"),
        ({"gradient_template": "no/such/file.txt"}, "path of a file, which cannot be read"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, told):
    with pytest.raises(ConfigError, match="optimiser 'apo'") as refused:
        make(**settings)
    assert told in str(refused.value)
