from __future__ import annotations

import logging
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coterie
from coterie.errors import RewardError
from coterie.rewards import returned_rewards
from coterie.scope import CallSummary, attempt_scope
from coterie.testing import ListSink, scope_for_test


def returned(value: object, gave: int = 0) -> dict[str | None, float]:
    rewards = returned_rewards(value, rollout_id="ro", attempt_id="at", gave=gave)
    assert all(reward.source == "return" and reward.name == "reward" for reward in rewards)
    return {reward.role: reward.value for reward in rewards}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_number_is_the_teams_reward(value: float) -> None:
    assert returned(value) == {None: value}


def test_what_may_be_returned() -> None:
    assert returned(True) == {None: 1.0}
    assert returned(-3) == {None: -3.0}
    assert returned(Fraction(1, 4)) == {None: 0.25}
    assert returned({"coder": 1, "reviewer": 0.5, "team": False}) == {"coder": 1.0, "reviewer": 0.5, None: 0.0}
    assert returned(None, gave=1) == {}
    numpy = pytest.importorskip("numpy")
    assert returned(numpy.float32(0.5)) == {None: 0.5}
    assert returned(numpy.bool_(True)) == {None: 1.0}
    assert returned({"coder": numpy.array(2.0)}) == {"coder": 2.0}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1.0", "'1.0' (str)"),
        (math.nan, "nan (float)"),
        (math.inf, "inf (float)"),
        (10**400, "no finite number"),
        (None, "Is a 'return' missing?"),
        ({}, "Is a 'return' missing?"),
        ([1.0], "[1.0] (list)"),
        (1j, "(complex)"),
        ({"coder": "good"}, "The reward of 'coder' is 'good'"),
        ({"coder": math.nan}, "The reward of 'coder' is nan"),
        ({"Coder": 1.0}, "Did you mean 'coder'?"),
        ({3: 1.0}, "names the role 3"),
        ({None: 1.0}, "names the role None"),
        ("x" * 10_000, "…"),
    ],
)
def test_what_may_not_be_returned(value: object, says: str) -> None:
    with pytest.raises(RewardError) as caught:
        returned(value)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_reward_is_bound_to_what_it_names() -> None:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        coterie.reward(1, role="coder", name="style", explanation="short")
        coterie.reward(0.5, call_id="ca-1", source="judge")
        coterie.reward(True, agent_path="manager/coder")
    first, second, third = sink.rewards
    assert (first.value, first.role, first.name, first.explanation) == (1.0, "coder", "style", "short")
    assert (second.call_id, second.source, second.role) == ("ca-1", "judge", None)
    assert (third.agent_path, third.value, third.attempt_id) == ("manager/coder", 1.0, "at-test")


def test_outside_an_attempt_it_does_nothing_but_still_checks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="coterie.rewards"):
        coterie.reward(1.0, name="helpful")
    assert "helpful" in caplog.text
    assert coterie.calls() == []
    for wrong in ({"value": math.nan}, {"value": 1.0, "role": "The Coder"}):
        with pytest.raises(RewardError):
            coterie.reward(**wrong)


def test_calls_gives_a_copy_of_the_calls_so_far() -> None:
    scope = scope_for_test()
    call = CallSummary("ca-1", "coder", "coder", 0, "print(1)")
    scope.add_call(call)
    with attempt_scope(scope):
        coterie.calls().clear()
        assert coterie.calls() == [call]
