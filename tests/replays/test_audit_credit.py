"""The credit of roles and turns, exact on a game small enough to play out in full."""

from __future__ import annotations

from itertools import pairwise, product
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie_trainers.audits.mask import role_credit
from coterie_trainers.audits.replay import leave_one_out, turn_credits, turn_weights

TURNS = 3
ENDS = list(product((0, 1), repeat=TURNS))
"""All ways that a game of three turns can go, each message being one of two with the same chance."""
values = st.floats(-1e6, 1e6)
games = st.fixed_dictionaries({end: st.integers(-20, 20).map(float) for end in ENDS})
"""What each way comes to."""


def continuations(game: dict[tuple[int, ...], float], past: tuple[int, ...]) -> list[float]:
    return [value for end, value in game.items() if end[: len(past)] == past]


@given(st.lists(values, min_size=1, max_size=9))
def test_the_credits_of_all_messages_at_a_turn_sum_to_zero(outcomes):
    credits_k = leave_one_out(outcomes)
    assert credits_k.sum() == pytest.approx(0.0, abs=1e-6 * max(1.0, *map(abs, outcomes)))
    if len(outcomes) == 1:
        assert credits_k.tolist() == [0.0]


@given(st.lists(values, min_size=2, max_size=9))
def test_a_message_has_no_part_in_what_it_is_compared_with(outcomes):
    first, *others = outcomes
    assert leave_one_out(outcomes)[0] == pytest.approx(first - fmean(others), abs=1e-6 * max(1.0, *map(abs, outcomes)))


@given(games, st.sampled_from(ENDS))
def test_turn_credits_are_the_advantages_of_the_game(game, played):
    replays = [continuations(game, played[:turn]) for turn in range(TURNS)]
    values_t = [fmean(replay) for replay in replays] + [game[played]]
    advantages_t = [after - before for before, after in pairwise(values_t)]
    assert turn_credits(game[played], replays) == pytest.approx(advantages_t)


@given(games, st.sampled_from(ENDS))
def test_the_credits_along_a_rollout_share_out_what_it_came_to(game, played):
    replays = [continuations(game, played[:turn]) for turn in range(TURNS)]
    shared = sum(credit or 0.0 for credit in turn_credits(game[played], replays))
    assert shared == pytest.approx(game[played] - fmean(replays[0]))


@given(games)
def test_the_mean_weight_of_a_turn_is_its_part_of_the_variance(game):
    """All rollouts with one replay a turn each: the mean of an unbiased estimate over everything is the truth."""
    weights_n = [
        turn_weights(game[played], [[one] for one in drawn])
        for played in ENDS
        for drawn in product(*(continuations(game, played[:turn]) for turn in range(TURNS)))
    ]
    left_t = [
        fmean(pvariance(continuations(game, past)) for past in product((0, 1), repeat=turn)) for turn in range(TURNS)
    ]
    truth = [before - after for before, after in zip(left_t, [*left_t[1:], 0.0], strict=True)]
    for turn in range(TURNS):
        assert fmean(weights[turn] or 0.0 for weights in weights_n) == pytest.approx(truth[turn], abs=1e-6)
    assert sum(truth) == pytest.approx(pvariance(game.values()))


def test_a_turn_without_replays_gets_no_credit_and_neither_does_the_one_before_it():
    assert turn_credits(1.0, [[0.0, 1.0], [], [1.0]]) == [None, None, 0.0]
    assert turn_weights(1.0, [[0.0, 1.0], [], [1.0]]) == [None, None, 0.0]


@given(values, st.lists(values, min_size=1, max_size=5))
def test_a_role_is_worth_what_is_lost_without_it(outcome, without):
    assert role_credit(outcome, without) == pytest.approx(outcome - fmean(without), abs=1e-6)
    assert role_credit(outcome, []) is None
