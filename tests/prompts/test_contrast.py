"""``contrast`` on written studies: joint lessons, misleading ones, roles that are fine, budgets, and the same course again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
from written_study import WrittenStudy

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.prompts import optimisers
from coterie_trainers.prompts.optimisers.contrast import Contrast, ContrastSettings, Order
from coterie_trainers.prompts.study import Study

ROLES = ("planner", "coder", "tester")
SEED = {role: f"You are the {role}." for role in ROLES}
Texts = Mapping[str, str]


def asked_of(question: str) -> tuple[str, str]:
    """The role and the text that a question is about."""
    role = re.search(r"role (\w+) in a team", question)
    text = re.search(r"<current>\n(.*?)\n</current>", question, re.DOTALL)
    assert role is not None
    assert text is not None
    return role[1], text[1]


def adds(*lessons: str) -> Callable[[str], str]:
    """A reflecting model that adds the first lesson which the text lacks; which one depends on the question's length."""

    def reflection(question: str) -> str:
        _, text = asked_of(question)
        missing = [lesson for lesson in lessons if lesson not in text]
        lesson = missing[len(question) % len(missing)] if missing else f"Rule {len(question)}."
        return f"<prompt>{text} {lesson}</prompt>"

    return reflection


async def found(study: WrittenStudy, **settings: object) -> Texts:
    finalists = await optimisers.get("contrast", settings)(study)
    return finalists[0].texts if finalists else study.seed.texts


def both(texts: Texts, task: Task) -> Mapping[str, float]:
    """Worth something only if planner and coder both know; the tester has nothing to do with it."""
    return {"team": float("Units." in texts["planner"] and "Units." in texts["coder"])}


async def test_what_two_roles_must_learn_together_is_found() -> None:
    study = WrittenStudy(SEED, both, adds("Units.", "Signs."))
    texts = await found(study)
    assert "Units." in texts["planner"]
    assert "Units." in texts["coder"]


async def test_a_role_that_was_fine_stays_as_it_was() -> None:
    """New texts of the tester do no harm here; it is put back since nothing is lost by it."""
    study = WrittenStudy(SEED, both, adds("Units."))
    texts = await found(study)
    assert texts["tester"] == SEED["tester"]


async def test_changes_that_hurt_beside_one_that_helps_are_told_apart() -> None:
    def worth(texts: Texts, task: Task) -> Mapping[str, float]:
        changed = sum(texts[role] != SEED[role] for role in ("coder", "tester"))
        return {"team": 0.5 + 0.5 * ("Units." in texts["planner"]) - 0.25 * changed}

    study = WrittenStudy(SEED, worth, adds("Units."))
    texts = await found(study, rounds=1)
    assert texts == {**SEED, "planner": "You are the planner. Units."}


async def test_what_helps_on_train_alone_is_not_kept() -> None:
    def worth(texts: Texts, task: Task) -> Mapping[str, float]:
        return {"team": float("Units." in texts["planner"]) if task.split == "train" else 0.5}

    study = WrittenStudy(SEED, worth, adds("Units."))
    assert await found(study, rounds=2) == SEED


async def test_a_lesson_that_shows_only_after_another_is_reached() -> None:
    """The coder's lesson shows only where the planner knows its own, which by itself gains nothing and looks worse."""

    def reflection(question: str) -> str:
        role, text = asked_of(question)
        if role == "planner":
            return adds("Units.")(question)
        lesson = "Signs." if "reward = 0.3 for coder" in question else f"Rule {len(text)}."
        return f"<prompt>{text} {lesson}</prompt>"

    def worth(texts: Texts, task: Task) -> Mapping[str, float]:
        knows = "Units." in texts["planner"]
        return {"team": float(knows and "Signs." in texts["coder"]), "coder": 0.3 if knows else 0.7}

    study = WrittenStudy({role: SEED[role] for role in ("planner", "coder")}, worth, reflection)
    texts = await found(study)
    assert "Units." in texts["planner"]
    assert "Signs." in texts["coder"]


async def test_roles_whose_texts_help_get_the_proposals() -> None:
    """The planner's own reward blames it; after the first round the tester, which is judged well, is not asked about."""

    def worth(texts: Texts, task: Task) -> Mapping[str, float]:
        good = min(1.0, 0.2 * texts["planner"].count("Rule"))
        return {"team": good, "planner": good, "coder": 1.0, "tester": 1.0}

    study = WrittenStudy(SEED, worth, adds())
    await found(study, rounds=3, prompts=1)
    asked = [asked_of(question)[0] for _, question in study.questions]
    assert asked[:6] == [role for role in ROLES for _ in range(2)]
    assert set(asked[6:]) == {"planner"}


async def test_it_reads_train_and_never_shows_validation() -> None:
    study = WrittenStudy(SEED, both, adds("Signs."), train=4, val=12)
    study.val = [Task(task.id, f"hidden {task.id}", split="val") for task in study.val]
    await found(study, rounds=2)
    assert study.questions
    assert not any("hidden" in question for _, question in study.questions)
    assert {purpose for purpose, _ in study.questions} == {"contrast proposal"}


@pytest.mark.parametrize("rollouts", range(0, 140, 7))
async def test_the_end_of_the_budget_leaves_what_was_found(rollouts: int) -> None:
    study = WrittenStudy(SEED, both, adds("Units."), rollouts=rollouts)
    texts = await found(study)
    assert study.rollouts_left >= 0
    if rollouts == 133:
        assert "Units." in texts["planner"]
    assert any("budget is spent" in note for note in study.notes) or "Units." in texts["coder"]


async def test_without_reflections_left_it_ends() -> None:
    study = WrittenStudy(SEED, both, adds("Units."), reflections=0)
    assert await found(study) == SEED
    assert any("no reflections are left" in note for note in study.notes)


async def test_the_same_study_has_the_same_course() -> None:
    async def course() -> object:
        study = WrittenStudy(SEED, both, adds("Signs.", "Units.", "Steps."), seed=3)
        return await found(study, rounds=3), list(study.played), study.questions, study.notes

    assert await course() == await course()


async def test_nothing_lost_ends_the_search() -> None:
    study = WrittenStudy(SEED, lambda texts, task: {"team": 1.0}, adds("Units."))
    assert await found(study) == SEED
    assert study.questions == []
    assert any("nothing is lost" in note for note in study.notes)


async def test_when_nothing_is_lost_on_the_batch_more_tasks_are_compared_on() -> None:
    """A lesson that a few validation tasks need is not missed because the others came first."""

    def worth(texts: Texts, task: Task) -> Mapping[str, float]:
        needs = task.split == "train" or task.input in (0, 1)
        return {"team": float(not needs or "Units." in texts["planner"])}

    study = WrittenStudy(SEED, worth, adds("Units."), val=16)
    texts = await found(study, batch=2)
    assert "Units." in texts["planner"]


async def test_a_text_that_cannot_be_used_costs_no_rollout() -> None:
    study = WrittenStudy(SEED, both, lambda question: "I would rather not.")
    assert await found(study, rounds=2) == SEED
    assert len(study.played) <= 8 + 2 * 8
    assert any("no new text was proposed" in note for note in study.notes)


async def test_random_edits_need_no_model() -> None:
    def worth(texts: Texts, task: Task) -> Mapping[str, float]:
        return {"team": float("step by step" in texts["planner"])}

    study = WrittenStudy(SEED, worth)
    texts = await found(study, local="random_edits", rounds=8, proposals=4)
    assert study.questions == []
    assert "step by step" in texts["planner"]


async def test_any_local_optimiser_can_be_set() -> None:
    seen: list[Order] = []

    async def local(study: Study, order: Order) -> tuple[str, str] | None:
        seen.append(order)
        return (f"{order.text} Units.", "because") if order.prompt.name != "tester" else None

    study = WrittenStudy(SEED, both)
    finalists = await Contrast(ContrastSettings(rounds=2), local)(study)
    assert "Units." in finalists[0].texts["coder"]
    assert finalists[0].why["coder"] == "because"
    assert finalists[0].author == "optimiser:contrast"
    assert all(each.role == order.prompt.role for order in seen for each in order.experience)
    assert any("You are the coder." in str(each) for order in seen for each in order.experience)


def test_wrong_settings_name_the_key() -> None:
    with pytest.raises(ConfigError, match="proposals = 0"):
        optimisers.get("contrast", {"proposals": 0})
    with pytest.raises(ConfigError, match=r"local.*'reflect' or 'random_edits'"):
        optimisers.get("contrast", {"local": "magic"})
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        optimisers.get("contrast", {"round": 2})
    with pytest.raises(ConfigError, match="experience"):
        optimisers.get("contrast", {"template": "{{prompt}}"})
