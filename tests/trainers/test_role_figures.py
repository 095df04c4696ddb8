"""The health of each role at one step: every figure on turns whose value can be told by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_episodes import episode, reward, turn

from coterie.episodes import Turn
from coterie_trainers.credit import Credit, CreditedTurn, credited_turns
from coterie_trainers.health.diversity import diversity
from coterie_trainers.health.role_figures import role_figures
from coterie_trainers.health.staleness import staleness


def step(*rollouts: tuple[str, float, Sequence[Turn]]) -> list[CreditedTurn]:
    """The turns of rollouts: task, team reward, turns."""
    episodes = [
        episode(turns, [reward(value, rollout=f"ro-{number}")], rollout=f"ro-{number}", task=task)
        for number, (task, value, turns) in enumerate(rollouts)
    ]
    return credited_turns(episodes, Credit())


def figures(
    turns: Sequence[CreditedTurn], advantages: Sequence[float] | None = None, **versions: int
) -> dict[str, float]:
    return role_figures(turns, np.array(advantages if advantages is not None else np.zeros(len(turns))), versions)


def test_each_role_has_its_own_figures():
    failed = replace(turn("reviewer", response=None), error="timed out")
    turns = step(
        ("a", 1.0, [turn("coder", response=[1, 2]), turn("reviewer", call_id="r", response=[9])]),
        ("a", 0.0, [turn("coder", response=[1, 2, 3, 4]), failed]),
    )
    found = figures(turns, [1.0, 0.5, -1.0, 0.5], team=3)
    assert found == pytest.approx(
        {
            "role/coder/reward": 0.5,
            "role/coder/advantage_spread": 1.0,
            "role/coder/zero_variance": 0.0,
            "role/coder/length": 3.0,
            "role/coder/error_rate": 0.0,
            "role/coder/staleness": 2.0,
            "role/coder/staleness_max": 2.0,
            # ^1 12 2$ and ^1 12 23 34 4$: six of eight bigrams are different, half of them would be the least.
            "role/coder/diversity": (6 / 8 - 1 / 2) / (1 - 1 / 2),
            "role/reviewer/reward": 0.5,
            "role/reviewer/advantage_spread": 0.0,
            "role/reviewer/zero_variance": 0.0,
            "role/reviewer/length": 1.0,
            "role/reviewer/error_rate": 0.5,
            "role/reviewer/staleness": 2.0,
            "role/reviewer/staleness_max": 2.0,
            # One of its two calls failed: nothing to compare the other with.
        }
    )


def test_a_group_is_a_task_and_zero_variance_counts_groups():
    same, other = turn(response=[1]), turn(response=[2])
    found = figures(step(("a", 1.0, [same]), ("a", 1.0, [same]), ("b", 1.0, [same]), ("b", 0.0, [other])))
    assert found["role/coder/zero_variance"] == 0.5
    assert found["role/coder/diversity"] == 0.5  # equal answers to a, different ones to b


def test_a_single_answer_has_no_diversity_and_another_model_no_staleness():
    found = figures(step(("a", 1.0, [turn(policy="hosted", version=7)])), team=3)
    assert "role/coder/diversity" not in found
    assert "role/coder/staleness" not in found


def test_staleness_is_the_mean_and_the_worst_over_turns_of_several_versions():
    calls = [turn(version=3), turn(version=1, call_id="old"), turn("reviewer", version=3, call_id="r")]
    turns = step(("a", 1.0, calls))
    assert staleness(turns, {"team": 4}) == pytest.approx({"staleness": 5 / 3, "staleness_max": 3.0})
    found = figures(turns, team=4)
    assert (found["role/coder/staleness"], found["role/coder/staleness_max"]) == (2.0, 3.0)
    assert (found["role/reviewer/staleness"], found["role/reviewer/staleness_max"]) == (1.0, 1.0)


def test_no_turns_have_no_figures():
    assert figures([]) == {}
    assert staleness([], {"team": 4}) == {}


answers = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=2, max_size=8)


@given(answers)
def test_diversity_lies_between_none_and_all(answers):
    assert 0.0 <= diversity(answers) <= 1.0


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(2, 20))
def test_equal_answers_of_different_tokens_have_no_diversity_however_many(answer, count):
    answer = list(dict.fromkeys(answer))
    assert diversity([answer] * count) == pytest.approx(0.0, abs=1e-12)


def test_answers_that_share_nothing_have_all_diversity():
    assert diversity([[1, 2, 3], [4, 5, 6], [7]]) == 1.0
