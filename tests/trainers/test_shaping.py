"""Shapers: what each adds, what it refuses, and whether it can make the wrong behaviour pay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_episodes import episode, reward, turn

from coterie.episodes import Episode
from coterie.errors import ConfigError, RewardError
from coterie.interfaces import TurnReward
from coterie_trainers import shaping
from coterie_trainers.advantages.turn_gae import TurnGae
from coterie_trainers.credit import Credit, credited_turns, turn_rewards
from coterie_trainers.shaping.checking import check_order
from coterie_trainers.shaping.difference import Difference
from coterie_trainers.shaping.format import Format
from coterie_trainers.shaping.length import Length
from coterie_trainers.shaping.margin import Margin
from coterie_trainers.shaping.potential import Potential


def said(*lengths: int, value: float = 0.0, rollout: str = "ro-1") -> Episode:
    """A coder's answers of so many tokens, and the team's reward."""
    turns = [turn(call_id=f"c{at}", index=at, response=range(length)) for at, length in enumerate(lengths)]
    return episode(turns, [reward(value, rollout=rollout)], rollout=rollout)


def outcomes(added: list[TurnReward]) -> list[float]:
    return [each.outcome for each in added]


# What each adds


def test_length_costs_more_the_longer_from_the_soft_limit_on() -> None:
    added = Length(limit=10, soft=4, weight=2)(said(1, 6, 7, 9, 10, 50))
    np.testing.assert_allclose(outcomes(added), [0, 0, -0.5, -1.5, -2, -2])
    assert added == [TurnReward(each.outcome, each.outcome) for each in added]


def test_format_costs_where_the_whole_answer_does_not_match() -> None:
    turns = [
        replace(turn(call_id="a"), text="SELECT 1\nFROM x"),
        replace(turn(call_id="b"), text="Well: SELECT 1"),
        replace(turn("reviewer", call_id="c"), text="no SQL"),
        replace(turn(call_id="d"), text="", error="reset by peer"),
    ]
    assert outcomes(Format("SELECT .*", roles=["coder"], cost=0.25)(episode(turns))) == [0, -0.25, 0, 0]
    assert outcomes(Format("SELECT .*", cost=0.25)(episode(turns))) == [0, -0.25, -0.25, 0]


def test_margin_takes_the_best_of_the_others_from_each() -> None:
    turns = [turn(name, call_id=f"{name}{at}", index=at) for name in "abc" for at in range(2)]
    rewards = [reward(3, role="a"), reward(1, role="b"), reward(2, role="c"), reward(9, role="a", name="style")]
    added = Margin()(episode(turns, rewards))
    assert outcomes(added) == [-2, -2, -3, -3, -3, -3]
    assert [each.step for each in added] == [0, -2, 0, -3, 0, -3]


def test_margin_makes_a_game_of_two_zero_sum() -> None:
    turns = [turn("a", call_id="a"), turn("b", call_id="b")]
    played = episode(turns, [reward(3, role="a"), reward(1, role="b")])
    made = turn_rewards(played, Credit(shapers={"margin": Margin()}))
    assert [each.outcome for each in made] == [2, -2]


def test_difference_leaves_what_the_team_would_have_lost() -> None:
    turns = [turn("a", call_id="a"), turn("b", call_id="b")]
    without = [reward(1, role="a", name="counterfactual"), reward(0.25, role="b", name="counterfactual")]
    made = turn_rewards(episode(turns, [reward(1), *without]), Credit(shapers={"difference": Difference()}))
    assert [each.outcome for each in made] == [0, 0.75]


def climbed(*heights: float | None, value: float = 0.0, rollout: str = "ro-1", task: str = "task-1") -> Episode:
    """A coder's calls from states of these potentials, None for a call that failed, and the team's reward."""
    turns = [
        replace(turn(call_id=f"c{at}", index=at), error="reset" if height is None else None)
        for at, height in enumerate(heights)
    ]
    potentials = [
        reward(height, name="potential", call=f"c{at}", rollout=rollout)
        for at, height in enumerate(heights)
        if height is not None
    ]
    return episode(turns, [reward(value, rollout=rollout), *potentials], rollout=rollout, task=task)


def test_potential_pays_progress_when_it_is_made() -> None:
    added = Potential(discount=0.5, weight=10)(climbed(0.2, 0.6, 0.4))
    np.testing.assert_allclose([each.step for each in added], [1, -4, -4])
    np.testing.assert_allclose(outcomes(added), [-2, -6, -4])


def test_a_call_that_failed_has_no_state_of_its_own() -> None:
    added = Potential(discount=0.5)(climbed(0.2, None, 0.4))
    np.testing.assert_allclose([each.step for each in added], [0.25 * 0.4 - 0.2, 0, -0.4])
    np.testing.assert_allclose(outcomes(added), [-0.2, -0.2, -0.4])


heights = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=6)


@given(ways=st.lists(heights, min_size=2, max_size=5), values=st.data(), discount=st.sampled_from([1.0, 0.9, 0.5]))
def test_potential_keeps_the_order_of_all_ways_from_one_start(
    ways: list[list[float]], values: st.DataObject, discount: float
) -> None:
    """However long the ways and whatever they pass: what is added to the return is the same, −Φ of the start."""
    start = values.draw(st.integers(-8, 8).map(float))
    episodes = [
        climbed(start, *way, value=values.draw(st.integers(-4, 4).map(float)), rollout=f"ro-{number}")
        for number, way in enumerate(ways)
    ]
    shaper = Potential(discount=discount)
    assert check_order(shaper, episodes).wrong == []
    for each in episodes:
        added = sum(discount**at * one.step for at, one in enumerate(shaper(each)))
        assert added == pytest.approx(-start)


@given(way=heights, value=st.integers(-4, 4).map(float), discount=st.sampled_from([1.0, 0.9]))
def test_potential_leaves_gae_as_it_was_where_the_critic_knows_it(
    way: list[float], value: float, discount: float
) -> None:
    """V − Φ is the value of the shaped task: with it every return is the old one less Φ, so advantages are the same."""
    made = climbed(*way, value=value)
    estimator = TurnGae(discount, 0.9)

    def samples(shapers: dict[str, Any], values: list[float]) -> list[Any]:
        turns = credited_turns([made], Credit(shapers=shapers))
        return [replace(each.sample, value=known) for each, known in zip(turns, values, strict=True)]

    knows = [float(at % 3) for at in range(len(way))]
    plain = samples({}, knows)
    shaped = samples({"potential": Potential(discount)}, [v - phi for v, phi in zip(knows, way, strict=True)])
    np.testing.assert_allclose(estimator.returns(shaped), estimator.returns(plain) - np.array(way), atol=1e-9)
    np.testing.assert_allclose(estimator(shaped), estimator(plain), atol=1e-6)


# Whether the wrong behaviour pays


def test_a_bonus_for_each_turn_pays_idling_and_the_check_says_so() -> None:
    def bonus(made: Episode) -> list[TurnReward]:
        return [TurnReward(0.3, 0.3)] * len(made.turns)

    quick, idle = said(3, value=1, rollout="quick"), said(3, 3, 3, 3, 3, value=0, rollout="idle")
    found = check_order(bonus, [quick, idle])
    assert (found.pairs, found.share) == (1, 1.0)
    assert str(found.wrong[0]) == (
        "task task-1, role coder: rollout quick is worth 1 and idle 0, but shaped 1.3 and 1.5"
    )


def test_a_cost_larger_than_the_reward_pays_short_wrong_answers() -> None:
    right, wrong = said(100, value=1, rollout="right"), said(5, value=0, rollout="wrong")
    assert check_order(Length(limit=50, soft=10, weight=0.9), [right, wrong]).share == 0
    assert check_order(Length(limit=50, soft=10, weight=1.1), [right, wrong]).share == 1


def test_a_potential_that_depends_on_the_way_and_not_the_state_is_found_out() -> None:
    """Φ of one and the same start differs: no potential, but a bonus by another name."""
    good, bad = climbed(0.9, 0, value=1, rollout="good"), climbed(-0.9, 0, value=0, rollout="bad")
    assert check_order(Potential(), [good, bad]).share == 1


def test_only_episodes_of_one_task_and_one_start_are_compared() -> None:
    here = climbed(0.9, 0, value=1, rollout="a")
    elsewhere = climbed(-0.9, 0, value=0, rollout="b", task="other")
    called_otherwise = climbed(-0.9, 0, value=0, rollout="c")
    asked = [replace(each, messages=[{"role": "user", "content": "else"}]) for each in called_otherwise.turns]
    assert check_order(Potential(), [here, elsewhere, replace(called_otherwise, turns=asked)]).pairs == 0


@given(values=st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=6))
def test_a_shaper_that_adds_nothing_is_right_about_every_pair(values: list[float]) -> None:
    episodes = [said(3, value=value, rollout=f"ro-{at}") for at, value in enumerate(values)]
    found = check_order(lambda made: [TurnReward(0, 0)] * len(made.turns), episodes)
    unequal = sum(one != other for at, one in enumerate(values) for other in values[at + 1 :])
    assert (found.pairs, list(found.wrong)) == (unequal, [])


# What is refused


@pytest.mark.parametrize(
    ("shaper", "made", "message"),
    [
        (Length(10, 5), episode([turn(response=None)], [reward(1)]), r"call call-0 of role 'coder'.*token ids"),
        (Margin(), episode([turn()], [reward(1, role="coder")]), r"roles that have one are: 'coder'"),
        (Difference(), said(1), r"without role 'coder'.*'counterfactual'"),
        (Potential(), said(1), r"call c0 of role 'coder' has no reward named 'potential'"),
        (Potential(), climbed(float("nan")), r"call c0 has the potential nan"),
        (lambda _: [], said(1), r"shaper 'it' gave 0 additions for 1 turns"),
        (lambda _: [TurnReward(float("inf"), 0)], said(1), r"shaper 'it' adds inf .* call c0 of role 'coder'"),
    ],
)
def test_what_a_shaper_cannot_use_is_an_error(shaper: Any, made: Episode, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        turn_rewards(made, Credit(shapers={"it": shaper}))


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_reward_outside_of_the_range_is_an_error(value: float) -> None:
    with pytest.raises(RewardError, match=rf"is {value:g}, outside of credit.range \[0, 1\]"):
        turn_rewards(said(1, value=value), Credit(range=(0, 1)))
    assert turn_rewards(said(1, value=1), Credit(range=(0, 1)))[0].outcome == 1


@pytest.mark.parametrize("given_range", [(1, 0), (0, 0), (0, float("inf")), (float("nan"), 1)])
def test_a_range_that_is_none_is_an_error(given_range: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"credit\.range"):
        Credit(range=given_range)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["lenght"], r"no shaper 'lenght'.*difference, format, length, margin, potential"),
        (["length"], r"'length': missing a required argument: 'limit'. Its options: limit, soft, weight, roles"),
        ([{"length": {"limit": 5, "soft": 9}}], r"soft = 9, more than its limit"),
        ([{"length": {"limit": -5, "soft": 9}}], r"limit = -5; it must be a number above 0"),
        ([{"format": {"pattern": "("}}], r"pattern '\('"),
        ([{"potential": {"discount": 1.5}}], r"discount = 1.5"),
        (["margin", {"margin": {}}], r"'margin' is given twice"),
        ([{"margin": {}, "potential": {}}], r"an entry is a name"),
    ],
)
def test_a_shaper_that_is_set_wrongly_is_an_error(chosen: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shaping.check(chosen)


def test_shapers_add_up_in_order() -> None:
    shapers = shaping.check([{"length": {"limit": 4, "soft": 2}}, {"format": {"pattern": "x", "cost": 0.25}}])
    assert list(shapers) == ["length", "format"]
    (made,) = turn_rewards(said(4, value=1), Credit(team=2, shapers=shapers))
    assert made == TurnReward(0.75, 0.75)
