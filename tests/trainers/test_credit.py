"""Credit: a reward reaches exactly the turns that it names, and none is lost without a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_episodes import episode, reward, turn

from coterie.errors import ConfigError, RewardError
from coterie_trainers.credit import Credit, credited_turns

CREDIT = Credit()


def rewards_by_call(*episodes, credit=CREDIT) -> dict[str, float]:
    return {item.turn.call_id: item.sample.reward for item in credited_turns(episodes, credit)}


def two_workers(order: tuple[str, str] = ("a", "b")) -> list:
    """Two workers under one role that ran at the same time, in either order of arrival."""
    return [turn("worker", call_id=name, path=f"manager/{name}", index=n, start_ns=5) for n, name in enumerate(order)]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_parallel_workers_of_two_roles_keep_their_own_rewards(order: tuple[str, str]) -> None:
    turns = [turn(name, call_id=name, start_ns=5) for name in order]
    assert rewards_by_call(episode(turns, [reward(1, role="a"), reward(0, role="b")])) == {"a": 1, "b": 0}
    assert rewards_by_call(episode(turns, [reward(0, role="b"), reward(1, role="a")])) == {"a": 1, "b": 0}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("by", ["path", "call"])
def test_parallel_workers_of_one_role_keep_their_own_rewards(order: tuple[str, str], by: str) -> None:
    bound = [
        reward(1, path="manager/a") if by == "path" else reward(1, call="a"),
        reward(0, path="manager/b") if by == "path" else reward(0, call="b"),
    ]
    assert rewards_by_call(episode(two_workers(order), bound)) == {"a": 1, "b": 0}
    assert rewards_by_call(episode(two_workers(order), bound[::-1])) == {"a": 1, "b": 0}


def test_parallel_calls_of_one_path_are_told_apart_by_call() -> None:
    turns = [turn("worker", call_id=name, start_ns=5) for name in ("a", "b")]
    assert rewards_by_call(episode(turns, [reward(0, call="b"), reward(1, call="a")])) == {"a": 1, "b": 0}


def test_the_narrowest_binding_counts() -> None:
    turns = [*two_workers(), turn("worker", call_id="c", path="manager/c"), turn("judge", call_id="d")]
    bound = [
        reward(10, call="a"),
        reward(20, path="manager/a"),
        reward(20, path="manager/b"),
        reward(30, role="worker"),
    ]
    assert rewards_by_call(episode(turns, bound)) == {"a": 10, "b": 20, "c": 30, "d": 0}


def test_a_reward_of_zero_for_a_call_hides_its_roles() -> None:
    assert rewards_by_call(episode([turn(call_id="a")], [reward(0, call="a"), reward(1, role="coder")])) == {"a": 0}


def test_team_and_local_rewards_are_weighed_and_added() -> None:
    turns = [turn("coder", call_id="a"), turn("reviewer", call_id="b")]
    rewards = [reward(1), reward(2), reward(10, role="coder"), reward(1, role="coder"), reward(99, name="style")]
    assert rewards_by_call(episode(turns, rewards), credit=Credit(team=0.5, local=2)) == {"a": 23.5, "b": 1.5}
    assert rewards_by_call(episode(turns, rewards), credit=Credit(name="style")) == {"a": 99, "b": 99}


def test_step_rewards_arrive_once() -> None:
    """The team's and the roles' with the last turn of each chain, a call's with the call."""
    turns = [turn("coder", call_id="a"), turn("reviewer", call_id="b"), turn("coder", call_id="c", index=1)]
    rewards = [reward(1), reward(10, role="coder"), reward(100, call="a")]
    credited = credited_turns([episode(turns, rewards)], Credit(team=2, local=3))
    assert [item.sample.reward for item in credited] == [302, 2, 32]
    assert [item.sample.step_reward for item in credited] == [300, 2, 32]


def test_each_worker_under_one_role_ends_with_the_teams_reward() -> None:
    credited = credited_turns([episode(two_workers(), [reward(1)])], CREDIT)
    assert [item.sample.step_reward for item in credited] == [1, 1]


def test_samples_carry_what_estimators_group_by() -> None:
    made = turn("coder", path="boss/coder", index=3, invocation="run-1")
    (item,) = credited_turns([episode([made], [reward(1)])], CREDIT)
    sample = item.sample
    assert sample.invocation == "run-1"
    assert (sample.task_id, sample.rollout_id, sample.role, sample.agent_path, sample.turn) == (
        "task-1",
        "ro-1",
        "coder",
        "boss/coder",
        3,
    )


def test_turns_without_tokens_are_credited_too() -> None:
    """They cannot be trained on, but their reward belongs in the group's mean."""
    assert rewards_by_call(episode([turn(call_id="a", prompt=None, response=None)], [reward(1)])) == {"a": 1}


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (reward(1, role="codr"), r"role 'codr', which made no call.*'coder'"),
        (reward(1, path="boss/coder"), r"agent path 'boss/coder', which made no call.*'coder'"),
        (reward(1, call="call-9"), r"call 'call-9', which made no call.*'call-0'"),
    ],
)
def test_a_reward_for_nobody_is_an_error_that_names_it(bound, message: str) -> None:
    with pytest.raises(RewardError, match=f"at-ro-1 of rollout ro-1.*{message}"):
        credited_turns([episode([turn()], [reward(1), bound])], CREDIT)


def test_a_role_that_is_silent_in_one_episode_only_is_no_error() -> None:
    reached = episode([turn("coder"), turn("reviewer", call_id="r")], [reward(1), reward(1, role="reviewer")])
    rewards = [reward(1, rollout="ro-2"), reward(0, role="reviewer", rollout="ro-2")]
    not_reached = episode([turn("coder")], rewards, rollout="ro-2")
    assert [item.sample.reward for item in credited_turns([reached, not_reached], CREDIT)] == [1, 2, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_finite_number_is_an_error(value: float) -> None:
    with pytest.raises(RewardError, match=f"ro-1.*{value}"):
        credited_turns([episode([turn()], [reward(value)])], CREDIT)


def test_rewards_that_overflow_together_are_an_error() -> None:
    with pytest.raises(RewardError, match="add up to inf"):
        credited_turns([episode([turn()], [reward(1e308), reward(1e308)])], CREDIT)


def test_an_episode_without_a_reward_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RewardError, match=r"at-ro-2 of rollout ro-2 has no reward.*[Rr]eturn a number"):
        credited_turns([episode([turn()], [reward(1)]), episode([turn()], rollout="ro-2")], CREDIT)
    with pytest.raises(RewardError, match=r"no reward named 'reward' \(it has: style\)"):
        credited_turns([episode([turn()], [reward(1, name="style")])], CREDIT)


def test_a_reward_of_another_attempt_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"at-ro-1.*belongs to attempt at-ro-2"):
        credited_turns([episode([turn()], [reward(1, rollout="ro-2")])], CREDIT)


def test_a_rollout_given_twice_is_an_error() -> None:
    with pytest.raises(RewardError, match="ro-1 is given twice"):
        credited_turns([episode([turn()], [reward(1)]), episode([turn()], [reward(1)])], CREDIT)


def test_a_weight_that_is_no_finite_number_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"credit\.local is nan"):
        Credit(local=float("nan"))


@given(
    values=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-9, 9), min_size=1),
    order=st.randoms(use_true_random=False),
)
def test_any_number_of_parallel_calls_get_their_own_rewards_in_any_order(values: dict[str, int], order) -> None:
    turns = [turn("worker", call_id=name, start_ns=5) for name in values]
    rewards = [reward(value, call=name) for name, value in values.items()]
    order.shuffle(turns)
    order.shuffle(rewards)
    assert rewards_by_call(episode(turns, rewards)) == values
