"""The benchmark of gradients: its true gradient is the derivative of what is played, and its measures tell right from wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gradients.exact import Model, Setting
from gradients.measuring import ALL, KNOWN, agreements
from gradients.tables import plot, tables
from gradients.tasks import LINE, TEAM, TeamTask, every_play, random_policy

SMALL = TeamTask("one kind", TEAM.play, ("easy both",))


@pytest.fixture(scope="module")
def team() -> Model:
    return Model(Setting(SMALL, own=True, scales={"reviewer": 20.0}))


def test_all_plays_of_a_kind_have_probability_one(team: Model) -> None:
    assert sum(team.probability["easy both"]) == pytest.approx(1)
    assert len({(*play.turns, play.team, play.chance) for play in every_play(SMALL, "easy both")}) > 1000


@pytest.mark.parametrize("role", ["manager", "worker", "reviewer"])
def test_the_true_gradient_is_the_derivative_of_what_the_role_gets(team: Model, role: str) -> None:
    """In units of the role's reward, for a logit of each role."""
    rows = {row: 3 if row[0] != "reviewer" else 2 for row in team.row_number}
    step = 1e-5
    for row in [each for each in rows if each[0] == role][:1]:

        def moved(by: float, row: tuple[str, ...] = row) -> float:
            logits = random_policy(rows, seed=0)
            logits[row][0] += by
            return Model(team.setting, policy=logits).objective(role)

        slope = (moved(step) - moved(-step)) / (2 * step) / team.spread(role)
        assert team.gradient()[team.row_number[row], 0] == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_an_unbiased_estimate_is_found_to_be_one_and_unequal_scales_to_mislead(team: Model) -> None:
    found = agreements(team, 8, rollouts=32, batches=60, names=("rollout", "role", KNOWN), seed=1)
    assert found[KNOWN][ALL].mean_cosine > 0.99
    assert found["role"]["worker"].cosine > found["rollout"]["worker"].cosine + 0.1
    assert found["role"][ALL].cosine > found["rollout"][ALL].cosine


def test_where_each_role_makes_one_call_for_the_teams_reward_grouping_is_no_difference() -> None:
    found = agreements(
        Model(Setting(LINE, own=False, scales={})),
        4,
        rollouts=16,
        batches=10,
        names=("rollout", "role", "nested"),
        seed=2,
    )
    assert found["rollout"][ALL].cosine == pytest.approx(found["role"][ALL].cosine)
    assert found["nested"] == found["role"]


def test_tables_and_plot_name_every_estimator() -> None:
    figure = {"cosine": 0.5, "cosine_error": 0.01, "mean_cosine": 1.0, "noise": 2.0}
    figures = {
        "one": {size: {name: {"worker": figure, ALL: figure} for name in ("role", KNOWN)} for size in ("2", "8")}
    }
    assert "| `role` | 0.50 | 0.50 |" in tables(figures, "8")
    assert plot(figures).count("<polyline") == 2
