"""Racing: the best is dropped as rarely as is said, the hopeless stop early, ties and an ended budget are told for what they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_study import WrittenStudy

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.prompts.selection import gain_shown, race
from coterie_trainers.prompts.selection.racing import evidence
from coterie_trainers.prompts.study import Candidate

unit = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])


def texts(*names: str) -> list[Candidate]:
    return [Candidate({"coder": name}) for name in names]


def study_of(worth: Callable[[str, int], float], *, val: int = 64, rollouts: int = 100_000) -> WrittenStudy:
    """``worth``: name of the candidate, number of the task → score."""

    def scores(found: Mapping[str, str], task: Task) -> Mapping[str, float]:
        number = task.input
        assert isinstance(number, int)
        return {"team": worth(found["coder"], number)}

    return WrittenStudy({"coder": "seed"}, scores, val=val, rollouts=rollouts)


def chances(seed: int, *, tasks: int, gap: float, of: tuple[str, ...]) -> Callable[[str, int], float]:
    """Coins of tasks that are hard or easy: the first candidate better by ``gap`` on average, the others alike."""
    chance = np.random.default_rng(seed)
    hard = chance.uniform(0.2, 0.8 - gap, tasks)
    draws = {name: chance.random(tasks) for name in of}
    return lambda name, task: float(draws[name][task] < hard[task] + (gap if name == of[0] else 0.0))


@pytest.mark.parametrize("gap", [0.0, 0.05])
async def test_the_best_is_dropped_no_more_often_than_is_said(gap: float) -> None:
    """Of equals each is a best one, which is the hardest case; the truth lies within three standard errors of the bound."""
    names = ("a", "b", "c", "d")
    lost = 0
    for seed in range(150):
        study = study_of(chances(seed, tasks=32, gap=gap, of=names), val=32)
        found = await race(study.evaluate, texts(*names), study.val, confidence=0.8, random=random.Random(seed))
        lost += texts("a")[0].id in {each.candidate for each in found.dropped}
    assert lost / 150 <= 0.2 + 3 * (0.2 * 0.8 / 150) ** 0.5


def test_looking_often_is_paid_for() -> None:
    """On a fair game, a z-test after each round at the same level is wrong far too often; the evidence is not."""
    looks = np.array([8, 16, 32, 64, 128, 256])
    z_wrong = wrong = 0
    for seed in range(200):
        fair = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], looks[-1])
        z_wrong += bool((np.cumsum(fair)[looks - 1] / np.sqrt(looks * 2 / 3) > 1.645).any())
        wrong += any(evidence(fair[:look].tolist()) >= 20 for look in looks)
    assert z_wrong / 200 > 0.10
    assert wrong / 200 <= 0.05


@given(st.lists(unit, min_size=1, max_size=5), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_nobody_wins_by_betting_on_a_fair_game(values: list[float], tasks: int) -> None:
    """The mean of the evidence over all sequences from a distribution with mean 0 is exactly 1, hence Ville's bound."""
    fair = [*values, *(-each for each in values)]
    total = Fraction(0)
    weights = len(fair) ** tasks
    if weights > 1000:
        tasks = 2
        weights = len(fair) ** tasks

    def all_sequences(left: int) -> list[list[float]]:
        return [[]] if left == 0 else [[*rest, each] for rest in all_sequences(left - 1) for each in fair]

    for sequence in all_sequences(tasks):
        total += Fraction(evidence(sequence))
    assert float(total / weights) == pytest.approx(1.0, rel=1e-9)


@given(st.lists(unit, min_size=1, max_size=40), st.randoms())
@settings(max_examples=40, deadline=None)
def test_evidence_has_no_order_and_grows_with_each_win(differences: list[float], chance: random.Random) -> None:
    shuffled = list(differences)
    chance.shuffle(shuffled)
    assert evidence(shuffled) == pytest.approx(evidence(differences), rel=1e-9)
    assert evidence([*differences, 1.0]) > evidence(differences)
    assert evidence([*differences, 0.0]) == pytest.approx(evidence(differences), rel=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=40), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
async def test_equals_all_go_the_whole_way_and_the_first_wins(column: list[float], others: int) -> None:
    study = study_of(lambda name, task: column[task], val=len(column))
    field = texts("seed", *map(str, range(others)))
    found = await race(study.evaluate, field, study.val, random=random.Random(0))
    assert found.winner.id == field[0].id
    assert found.dropped == []
    assert found.rounds[-1].tasks == len(column)


async def test_without_variance_a_steady_difference_is_certain_only_after_enough_tasks() -> None:
    for tasks, certain in ((4, False), (8, True)):
        study = study_of(lambda name, task: 1.0 if name == "good" else 0.0, val=tasks)
        found = await race(study.evaluate, texts("seed", "good"), study.val, random=random.Random(0))
        assert found.winner.texts["coder"] == "good"
        assert bool(found.dropped) is certain


async def test_the_hopeless_stop_early_and_the_rest_go_on() -> None:
    def worth(name: str, task: int) -> float:
        return {"bad": 0.0, "seed": float(task % 2), "good": float(task % 2 or task % 4 == 0)}[name]

    study = study_of(worth, val=64)
    seed, bad, good = texts("seed", "bad", "good")
    found = await race(study.evaluate, [seed, bad, good], study.val, samples=2, random=random.Random(3))
    assert found.winner.id == good.id
    (first, *_) = found.dropped
    assert first.candidate == bad.id
    assert first.tasks < 64
    assert "leader" in first.reason
    assert len(found.scores[bad.id]) == first.tasks
    assert {len(each) for each in found.scores[good.id].values()} == {2}
    spent = 100_000 - study.rollouts_left
    assert spent < 3 * 64 * 2


async def test_what_counts_are_differences_on_the_same_task() -> None:
    """Steady small differences decide among tasks that differ widely; taken apart, the two would look alike."""
    hardness = np.random.default_rng(1).uniform(0, 0.9, 200)
    study = study_of(lambda name, task: float(hardness[task] + 0.1 * (name == "good")), val=200)
    found = await race(study.evaluate, texts("seed", "good"), study.val, random=random.Random(0))
    assert [each.candidate for each in found.dropped] == [texts("seed")[0].id]
    deviation = np.std([each[0] for each in found.scores[texts("good")[0].id].values()])
    assert deviation > 2 * 0.1


async def test_a_flagged_one_loses_a_tie_and_wins_if_better() -> None:
    field = texts("flagged", "plain")
    flagged = {field[0].id}
    even = study_of(lambda name, task: 1.0)
    found = await race(even.evaluate, field, even.val, random=random.Random(0), flagged=flagged)
    assert found.winner.id == field[1].id
    uneven = study_of(lambda name, task: float(name == "flagged"))
    found = await race(uneven.evaluate, field, uneven.val, random=random.Random(0), flagged=flagged)
    assert found.winner.id == field[0].id


@given(st.integers(0, 200))
@settings(max_examples=20, deadline=None)
async def test_when_the_budget_ends_the_best_of_what_all_had_played_wins(rollouts: int) -> None:
    study = study_of(lambda name, task: {"seed": 0.5, "b": 0.6, "c": 0.55}[name], val=64, rollouts=rollouts)
    field = texts("seed", "b", "c")
    found = await race(study.evaluate, field, study.val, random=random.Random(0))
    assert study.rollouts_left >= 0
    assert (found.cut_short is not None) == (rollouts < 3 * 64)
    # The seed is asked first, so that it is what remains when nothing else was measured.
    assert found.winner.texts["coder"] == ("seed" if rollouts < 2 * 8 else "b")


async def test_the_same_race_has_the_same_course() -> None:
    names = ("a", "b", "c")

    async def run() -> tuple[object, ...]:
        study = study_of(chances(5, tasks=50, gap=0.1, of=names), val=50)
        found = await race(study.evaluate, texts(*names), study.val, random=random.Random(9))
        return found.winner.id, found.rounds, found.dropped, found.scores

    assert await run() == await run()


async def test_the_same_texts_twice_race_once() -> None:
    study = study_of(lambda name, task: 1.0, val=8)
    found = await race(study.evaluate, texts("seed", "seed"), study.val, random=random.Random(0))
    assert list(found.scores) == [texts("seed")[0].id]


async def test_what_cannot_be_raced_is_said() -> None:
    study = study_of(lambda name, task: 2.0, val=8)
    chance = random.Random(0)
    with pytest.raises(ConfigError, match="no candidate"):
        await race(study.evaluate, [], study.val, random=chance)
    with pytest.raises(ConfigError, match="'val' split"):
        await race(study.evaluate, [study.seed], [], random=chance)
    with pytest.raises(ConfigError, match="scored 2, outside of 0 to 1"):
        await race(study.evaluate, [study.seed], study.val, random=chance)
    with pytest.raises(ConfigError, match="confidence"):
        await race(study.evaluate, [study.seed], study.val, random=chance, confidence=95)


def table(*values: float) -> dict[str, list[float]]:
    return {f"task-{n}": [value] for n, value in enumerate(values)}


def test_a_gain_is_shown_when_the_interval_lies_above_zero() -> None:
    gain = gain_shown(table(*[0.0] * 20), table(*[1.0] * 15, *[0.0] * 5))
    assert gain.shown
    assert gain.interval.value == 0.75
    assert "+0.75" in gain.reason


def test_a_gain_that_may_be_chance_is_not_shown() -> None:
    gain = gain_shown(table(*[0.0] * 20), table(1.0, 1.0, *[0.0] * 18))
    assert not gain.shown
    assert "does not lie above 0" in gain.reason
    assert not gain_shown(table(*[0.5] * 9), table(*[0.5] * 9)).shown


@pytest.mark.parametrize("tasks", range(1, 10))
def test_a_few_tasks_show_nothing_however_clear(tasks: int) -> None:
    """The bootstrap interval of equal differences has no width: on few tasks that is ignorance."""
    gain = gain_shown(table(*[0.0] * tasks), table(*[1.0] * tasks))
    assert gain.interval.low == 1.0
    assert gain.shown is (0.5**tasks <= 0.025)
