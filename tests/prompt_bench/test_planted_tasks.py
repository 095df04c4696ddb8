"""The tasks of the prompt benchmark: what is planted in them is there, is needed, and can be found."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import coterie
from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.runner import Runner
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, Resource, ResourceKind, Rollout, Task

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from prompt_tasks.all_tasks import ALL
from prompt_tasks.planted import PlantedTask
from prompt_tasks.reflecting import GENERAL, SUGGESTED, ReflectingModel

SEEDS = range(200)


@pytest.fixture(params=ALL)
def planted(request: pytest.FixtureRequest) -> PlantedTask:
    """Each task in turn."""
    if request.param == "permits":
        pytest.importorskip("langgraph")
        pytest.importorskip("langchain_openai")
    return ALL[request.param]


def test_with_every_lesson_all_goes_well_and_each_is_needed(planted: PlantedTask, tmp_path: Path) -> None:
    variants = {"seed": planted.prompts, "oracle": planted.oracle}
    for lesson in planted.lessons:
        variants[lesson.text] = planted.taught([other for other in planted.lessons if other is not lesson])
    success = successes(planted, variants, planted.split("val"), tmp_path)
    assert success["oracle"] == 1.0
    assert 0 < success["seed"] <= 0.5
    without_one = [value for name, value in success.items() if name not in ("seed", "oracle")]
    assert len(without_one) == len(planted.lessons)
    assert max(without_one) <= 0.8


def test_one_of_two_lessons_gains_nothing_where_both_are_needed_together(tmp_path: Path) -> None:
    planted = ALL["orders"]
    variants = {lesson.role: planted.taught([lesson]) for lesson in planted.lessons} | {"seed": planted.prompts}
    success = successes(planted, variants, planted.split("train"), tmp_path)
    assert success["dispatcher"] == success["packer"] == success["seed"]


def test_the_misleading_lesson_gains_on_train_and_loses_elsewhere(tmp_path: Path) -> None:
    planted = ALL["tickets"]
    (shortcut,) = [each for each in planted.suspicions if "refund" in each.clue]
    variants = {"seed": planted.prompts, "shortcut": with_line(planted, "triager", shortcut.advice)}
    on_train = successes(planted, variants, planted.split("train"), tmp_path / "train")
    on_val = successes(planted, variants, planted.split("val"), tmp_path / "val")
    assert on_train["shortcut"] >= on_train["seed"] + 0.15
    assert on_val["shortcut"] <= on_val["seed"] - 0.1


def test_changing_the_role_that_is_fine_hurts(tmp_path: Path) -> None:
    planted = ALL["articles"]
    prompts = {**planted.oracle, "editor": f"{planted.prompts['editor']}\n{GENERAL[0]}"}
    success = successes(planted, {"changed": prompts}, planted.split("val"), tmp_path)
    assert success["changed"] <= 0.8


def test_the_reflecting_model_finds_a_lesson_in_its_roles_failures_and_not_without_them(
    planted: PlantedTask, tmp_path: Path
) -> None:
    (episodes,) = played(planted, {"seed": planted.prompts}, planted.split("train"), tmp_path).values()
    failed = [episode for episode in episodes if success_of(episode) < 1]
    for lesson in planted.lessons:
        own = [turns_and_rewards(episode, lesson.role) for episode in failed]
        (clue,) = [each.clue for each in planted.suspicions if each.advice == lesson.text]
        telling = [text for text in own if contains(text, clue)][:3]
        others = [turns_and_rewards(e, role) for e in failed for role in planted.prompts if role != lesson.role][:3]
        assert telling
        asks = request(planted.prompts[lesson.role], telling)
        assert share(planted, asks, lesson.text) > 0.3
        assert share(planted, request(planted.prompts[lesson.role], others), lesson.text) == 0
        # Where the whole trace is shown it is found less often.
        whole = [str(text) for episode in failed[:3] for text in [whole_trace(episode, planted)]]
        assert share(planted, request(planted.prompts[lesson.role], whole), lesson.text) < share(
            planted, asks, lesson.text
        )


def test_the_reflecting_model_answers_the_same_and_only_from_what_it_reads() -> None:
    planted = ALL["invoices"]
    clue = "The date '03/04/2026' is not as the ledger has it, 2026-04-03."
    model = ReflectingModel(planted, seed=0)
    asks = request(planted.prompts["reader"], [clue])
    assert model(asks) == model(asks)
    assert planted.lessons[0].text in model(asks)
    far = request(planted.prompts["reader"], ["x" * 20_000, clue, "x" * 20_000])
    assert any(general in model(far) for general in GENERAL)


def test_the_reflecting_model_follows_a_criticism_and_keeps_what_the_prompt_says() -> None:
    planted = ALL["invoices"]
    prompt = f"{planted.prompts['writer']}\nBe precise and complete."
    answer = ReflectingModel(planted, seed=0)(request(prompt, [f"{SUGGESTED}Write amounts without a comma."]))
    assert answer == f"```\n{prompt}\nWrite amounts without a comma.\n```"


def test_the_reflecting_model_answers_in_the_form_it_is_asked_for() -> None:
    planted = ALL["invoices"]
    prompt = planted.prompts["writer"]
    question = f"The prompt:\n<current>\n{prompt}\n</current>\nThe ledger refuses the amount '1,000.00'."
    plain, tagged = (
        ReflectingModel(planted, seed=0, discernment=1.0)({"messages": [{"role": "user", "content": question + form}]})
        for form in ("", "\nAnswer between <prompt> and </prompt>.")
    )
    assert plain == f"{SUGGESTED}{planted.lessons[1].text}"
    assert tagged == f"<prompt>\n{prompt}\n{planted.lessons[1].text}\n</prompt>"


def request(prompt: str, evidence: Sequence[str]) -> dict[str, object]:
    shown = "\n\n".join(evidence)
    return {"messages": [{"role": "user", "content": f"Improve this prompt:\n```\n{prompt}\n```\n\n{shown}"}]}


def share(planted: PlantedTask, asks: dict[str, object], text: str) -> float:
    """Of many seeds of the reflecting model, those with which it proposes a text."""
    return sum(text in ReflectingModel(planted, seed)(asks) for seed in SEEDS) / len(SEEDS)


def contains(text: str, clue: str) -> bool:
    return re.search(clue, text) is not None


def with_line(planted: PlantedTask, role: str, line: str) -> dict[str, str]:
    return {**planted.prompts, role: f"{planted.prompts[role]}\n{line}"}


def turns_and_rewards(episode: Episode, role: str) -> str:
    turns = [turn.text for turn in episode.turns if turn.role == role]
    told = [reward.explanation or "" for reward in episode.rewards if reward.role == role]
    return "\n".join(turns + told)


def whole_trace(episode: Episode, planted: PlantedTask) -> str:
    return "\n".join(turns_and_rewards(episode, role) for role in planted.prompts)


def success_of(episode: Episode) -> float:
    (value,) = [reward.value for reward in episode.rewards if reward.role is None]
    return value


def successes(
    planted: PlantedTask, variants: Mapping[str, Mapping[str, str]], tasks: Sequence[Task], folder: Path
) -> dict[str, float]:
    """The team's mean success under each set of prompts."""
    return {
        name: sum(map(success_of, episodes)) / len(episodes)
        for name, episodes in played(planted, variants, tasks, folder).items()
    }


def played(
    planted: PlantedTask, variants: Mapping[str, Mapping[str, str]], tasks: Sequence[Task], folder: Path
) -> dict[str, list[Episode]]:
    """Play the real team on tasks with each set of prompts, through a runner and a store."""
    folder.mkdir(exist_ok=True)

    async def play() -> dict[str, list[Episode]]:
        async with coterie.connect(folder / "tasks.db") as store:
            await store.add_tasks(tasks)
            rollouts: dict[str, list[Rollout]] = {}
            for name, prompts in variants.items():
                pins = {}
                for role, text in prompts.items():
                    published = await store.publish(Resource(role, ResourceKind.PROMPT, {"text": text, "role": role}))
                    pins[role] = published.version
                rollouts[name] = [Rollout(task.id, mode=Mode.VAL, resources=pins) for task in tasks]
            async with Runner(store, planted.team(server.base_url), concurrency=16):
                ids = [rollout.id for several in rollouts.values() for rollout in several]
                await store.enqueue([rollout for several in rollouts.values() for rollout in several])
                await asyncio.wait_for(store.wait(ids), 120)
            return {
                name: await load_episodes(store, [rollout.id for rollout in several])
                for name, several in rollouts.items()
            }

    coterie.instrument()
    try:
        with ScriptedModel(planted.reply) as server:
            return asyncio.run(play())
    finally:
        coterie.uninstrument()


def test_no_two_texts_of_a_task_can_be_taken_for_each_other(planted: PlantedTask) -> None:
    texts = [each.advice for each in planted.suspicions] + list(planted.prompts.values()) + list(GENERAL)
    assert len(texts) == len(set(texts))
    assert not any(one in other for one in texts for other in texts if one is not other)
    for suspicion in planted.suspicions:
        assert not contains("\n".join([*texts, json.dumps(planted.oracle)]), suspicion.clue), suspicion.clue
