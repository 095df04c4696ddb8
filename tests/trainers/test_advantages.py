"""Advantages: the properties that every group-relative estimator must have, the choice by name, and verl's own GRPO."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie.interfaces import Sample
from coterie_trainers import advantages
from coterie_trainers.advantages.ema_role import EmaRole
from coterie_trainers.advantages.loo import loo
from coterie_trainers.advantages.nested import nested
from coterie_trainers.advantages.role import role
from coterie_trainers.advantages.role_turn import role_turn
from coterie_trainers.advantages.rollout import rollout
from coterie_trainers.advantages.state import state
from coterie_trainers.advantages.state_history import state_history
from coterie_trainers.advantages.transition import transition
from coterie_trainers.advantages.turn_gae import TurnGae

Estimator = Callable[[Sequence[Sample]], np.ndarray]
KEYS: dict[Estimator, Callable[[Sample], Hashable]] = {
    rollout: lambda sample: sample.task_id,
    role: lambda sample: (sample.task_id, sample.role),
    role_turn: lambda sample: (sample.task_id, sample.role, sample.turn),
}
standardising = pytest.mark.parametrize("estimator", list(KEYS), ids=lambda estimator: estimator.__name__)
"""Those that compare rollouts of a group by mean and standard deviation."""
estimators = pytest.mark.parametrize(
    "estimator", [*KEYS, nested, transition, loo, state, state_history], ids=lambda estimator: estimator.__name__
)
"""All that compare within a step."""


def sample(
    reward: float,
    rollout_id: str,
    *,
    task: str = "t",
    role: str = "coder",
    turn: int = 0,
    step: int = 0,
    state_key: str | None = None,
) -> Sample:
    return Sample(
        task_id=task,
        rollout_id=rollout_id,
        role=role,
        agent_path=role,
        turn=turn,
        reward=reward,
        state_key=state_key,
        step=step,
    )


# Quarters: sums and differences are exact, so that scaling and shifting cannot move a group across the rounding limit.
quarters = st.integers(-16, 16).map(lambda number: number / 4)


@st.composite
def steps(draw: st.DrawFn, *, reward_per_rollout: bool = False, states: bool = False) -> list[Sample]:
    """A training step: tasks with rollouts, in which some roles make some calls."""
    samples = []
    for task in range(draw(st.integers(1, 3))):
        for number in range(draw(st.integers(1, 4))):
            shared, made = draw(quarters), 0
            for name in ("analyst", "coder", "reviewer"):
                for turn in range(draw(st.integers(0, 3))):
                    value = shared if reward_per_rollout else draw(quarters)
                    samples.append(
                        sample(
                            value,
                            f"{task}.{number}",
                            task=str(task),
                            role=name,
                            turn=turn,
                            step=made,
                            state_key=draw(st.sampled_from([None, "door", "hall"])) if states else None,
                        )
                    )
                    made += 1
    return samples


@st.composite
def hierarchies(draw: st.DrawFn, *, most_calls: int = 3) -> list[Sample]:
    """A step of managers who call workers of two roles any number of times; each run of a worker takes some turns."""
    samples: list[Sample] = []

    def act(task: int, number: int, path: str, run: int | None, turn: int) -> None:
        made = sample(draw(quarters), f"{task}.{number}", task=str(task), role=path.split("/")[-1], turn=turn)
        samples.append(replace(made, agent_path=path, invocation=None if run is None else f"{task}.{number}.{run}"))

    for task in range(draw(st.integers(1, 2))):
        for number in range(draw(st.integers(1, 4))):
            for turn in range(draw(st.integers(1, 2))):
                act(task, number, "manager", None, turn)
            for worker, runs in (("searcher", 10), ("writer", 20)):
                for run in range(draw(st.integers(0, most_calls))):
                    for turn in range(draw(st.integers(1, 3))):
                        act(task, number, f"manager/{worker}", runs + run, turn)
    return samples


def by_rollout(samples: Sequence[Sample], values: Sequence[float], key: Callable[[Sample], Hashable]) -> dict:
    """Group → one number a rollout: the mean over its turns in the group."""
    groups: dict = defaultdict(lambda: defaultdict(list))
    for item, value in zip(samples, values, strict=True):
        groups[key(item)][item.rollout_id].append(value)
    return {group: [float(np.mean(turns)) for turns in members.values()] for group, members in groups.items()}


@standardising
@given(samples=steps())
def test_each_group_has_mean_zero_and_unit_spread_over_its_rollouts(
    estimator: Estimator, samples: list[Sample]
) -> None:
    key = KEYS[estimator]
    advantages_N = np.asarray(estimator(samples))
    squares = by_rollout(samples, list(advantages_N**2), key)
    for group, values in by_rollout(samples, list(advantages_N), key).items():
        assert np.mean(values) == pytest.approx(0, abs=1e-9)
        if any(squares[group]):
            assert sum(squares[group]) / (len(values) - 1) == pytest.approx(1)


@estimators
@given(samples=steps(), seed=st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(estimator: Estimator, samples: list[Sample], seed: int) -> None:
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    shuffled = estimator([samples[place] for place in order])
    np.testing.assert_allclose(shuffled, estimator(samples)[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", [*KEYS, transition], ids=lambda estimator: estimator.__name__)
@given(
    samples=steps(), scale=st.sampled_from([1 / 64, 0.25, 2.0, 3.0, 1000.0]), shift=st.integers(-100, 100).map(float)
)
def test_scale_and_shift_of_the_reward_do_not_matter(
    estimator: Estimator, samples: list[Sample], scale: float, shift: float
) -> None:
    changed = [replace(item, reward=scale * item.reward + shift) for item in samples]
    np.testing.assert_allclose(estimator(changed), estimator(samples), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", [*KEYS, loo, state], ids=lambda estimator: estimator.__name__)
@given(samples=steps())
def test_a_lone_rollout_gets_exactly_zero(estimator: Estimator, samples: list[Sample]) -> None:
    lone = [replace(item, task_id=item.rollout_id) for item in samples]
    assert (estimator(lone) == 0.0).all()


@estimators
@given(samples=steps(), value=st.sampled_from([0.0, 1.0, 0.1, 1 / 3, -7.7, 1e-300, 1e12]))
def test_a_group_without_spread_gets_exactly_zero(estimator: Estimator, samples: list[Sample], value: float) -> None:
    """0.1 and 1/3 have rounded means: what is left of the difference must not be blown up to ±1."""
    assert (estimator([replace(item, reward=value) for item in samples]) == 0.0).all()


@estimators
@given(samples=steps(), names=st.permutations(["analyst", "coder", "reviewer"]))
def test_what_roles_are_called_does_not_matter(estimator: Estimator, samples: list[Sample], names: list[str]) -> None:
    renamed = dict(zip(["analyst", "coder", "reviewer"], names, strict=True))
    np.testing.assert_allclose(
        estimator([replace(item, role=renamed[item.role]) for item in samples]), estimator(samples), rtol=1e-9
    )


@pytest.mark.parametrize("estimator", [*KEYS, loo], ids=lambda estimator: estimator.__name__)
@given(samples=steps(reward_per_rollout=True), times=st.integers(2, 5), data=st.data())
def test_more_calls_do_not_give_a_rollout_more_votes(
    estimator: Estimator, samples: list[Sample], times: int, data: st.DataObject
) -> None:
    """A rollout that makes each call several times changes nobody's advantage."""
    chatty = data.draw(st.sampled_from(sorted({item.rollout_id for item in samples}) or ["none"]))
    repeated = samples + [item for item in samples if item.rollout_id == chatty] * (times - 1)
    np.testing.assert_allclose(estimator(repeated)[: len(samples)], estimator(samples), rtol=1e-9, atol=1e-12)


def test_rollout_by_hand() -> None:
    """Rollout means 1, 0, 0 whatever the number of calls: mean 1/3, sample std 1/√3."""
    samples = [sample(1, "a"), *[sample(0, "b", turn=turn) for turn in range(9)], sample(0, "c")]
    np.testing.assert_allclose(rollout(samples), [2 / 3**0.5] + [-1 / 3**0.5] * 10)


def test_turns_of_one_rollout_keep_their_own_rewards() -> None:
    """Rollout means 0.5 and 0: mean 0.25, mean squares 5/16 and 1/16. The better turn of a stands above the worse."""
    samples = [sample(1, "a"), sample(0, "a", turn=1), sample(0, "b")]
    np.testing.assert_allclose(rollout(samples), np.array([0.75, -0.25, -0.25]) / (6 / 16) ** 0.5)


@standardising
@given(samples=steps())
def test_no_advantage_grows_beyond_what_its_group_allows(estimator: Estimator, samples: list[Sample]) -> None:
    """Turns that differ much inside rollouts that hardly differ must not get advantages without bound."""
    turns = Counter((KEYS[estimator](item), item.rollout_id) for item in samples)
    rollouts = Counter(group for group, _ in turns)
    for item, advantage in zip(samples, estimator(samples), strict=True):
        group = KEYS[estimator](item)
        assert abs(advantage) <= ((rollouts[group] - 1) * turns[group, item.rollout_id]) ** 0.5 + 1e-9


def test_roles_on_unequal_scales_are_apart_under_role_and_not_under_rollout() -> None:
    coder = [sample(0, "a"), sample(1, "b")]
    reviewer = [sample(100, "a", role="reviewer"), sample(300, "b", role="reviewer")]
    expected = np.array([-1, 1]) / 2**0.5
    np.testing.assert_allclose(role(coder + reviewer), [*expected, *expected])
    assert (rollout(coder + reviewer)[:2] < 0).all()


@given(samples=steps())
def test_role_gives_each_role_what_it_would_get_alone(samples: list[Sample]) -> None:
    together = role(samples)
    for name in {item.role for item in samples}:
        places = [place for place, item in enumerate(samples) if item.role == name]
        np.testing.assert_array_equal(together[places], role([samples[place] for place in places]))


@estimators
@given(samples=steps(states=True), seed=st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter_with_states(
    estimator: Estimator, samples: list[Sample], seed: int
) -> None:
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    shuffled = estimator([samples[place] for place in order])
    np.testing.assert_allclose(shuffled, np.asarray(estimator(samples))[order], rtol=1e-9, atol=1e-12)


@given(samples=steps())
def test_one_call_a_rollout_makes_transition_rollout(samples: list[Sample]) -> None:
    first = [item for item in samples if item.step == 0]
    np.testing.assert_allclose(transition(first), rollout(first), rtol=1e-9, atol=1e-12)


def test_transition_weighs_long_rollouts_more() -> None:
    samples = [sample(1, "a"), *[sample(0, "b", turn=turn) for turn in range(9)]]
    assert transition(samples)[0] > rollout(samples)[0]


@given(samples=steps())
def test_one_turn_a_role_makes_role_turn_role(samples: list[Sample]) -> None:
    first = [item for item in samples if item.turn == 0]
    np.testing.assert_allclose(role_turn(first), role(first), rtol=1e-9, atol=1e-12)


def test_role_turn_compares_late_turns_with_late_turns() -> None:
    """Second calls all fail: against the role's mean they look bad, among themselves one is better."""
    first = [sample(1, rollout_id) for rollout_id in "ab"]
    second = [sample(0.25, "a", turn=1), sample(0, "b", turn=1)]
    assert role_turn(first + second)[2] > 0 > role(first + second)[2]


@given(samples=hierarchies())
def test_nested_counts_rollouts_alike_and_within_each_its_invocations_alike(samples: list[Sample]) -> None:
    """The mean over turns, then over a rollout's runs of the role, then over rollouts is zero, and so is no other."""
    runs: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for item, advantage in zip(samples, nested(samples), strict=True):
        run = item.invocation if item.role != "manager" else None
        runs[item.task_id, item.role][item.rollout_id][run].append(advantage)
    for rollouts in runs.values():
        means = [np.mean([np.mean(turns) for turns in each.values()]) for each in rollouts.values()]
        assert np.mean(means) == pytest.approx(0, abs=1e-9)
        if sum(map(len, rollouts.values())) == 1:
            assert not any(advantage for each in rollouts.values() for turns in each.values() for advantage in turns)


@given(samples=hierarchies(), seed=st.integers(0, 1000), scale=st.sampled_from([0.25, 3.0, 1000.0]))
def test_nested_depends_on_no_order_scale_or_shift(samples: list[Sample], seed: int, scale: float) -> None:
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    changed = [replace(samples[place], reward=scale * samples[place].reward + 7) for place in order]
    np.testing.assert_allclose(nested(changed), nested(samples)[order], rtol=1e-6, atol=1e-8)


@given(samples=hierarchies(most_calls=1))
def test_one_invocation_a_rollout_makes_nested_role(samples: list[Sample]) -> None:
    np.testing.assert_allclose(nested(samples), role(samples), rtol=1e-9, atol=1e-12)


def runs_of_a_worker(*rollouts: Sequence[float]) -> list[Sample]:
    """Rollout → the reward of each of its worker's runs, a turn each."""
    return [
        replace(sample(value, str(number), turn=turn), agent_path="boss/coder", invocation=f"{number}.{turn}")
        for number, values in enumerate(rollouts)
        for turn, value in enumerate(values)
    ]


def test_nested_by_hand() -> None:
    """Mean (1 + 1/2) / 2 = 3/4. Weights 1, 1/2, 1/2: Σw·x² = 3/8, divided by 2 − 3/2/2 = 5/4: variance 3/10."""
    np.testing.assert_allclose(
        nested(runs_of_a_worker([1], [1, 0])), np.array([0.25, 0.25, -0.75]) / 0.3**0.5, rtol=1e-12
    )


def test_runs_within_one_rollout_are_siblings() -> None:
    np.testing.assert_allclose(nested(runs_of_a_worker([1, 0])), np.array([1, -1]) / 2**0.5)
    assert nested(runs_of_a_worker([1])).tolist() == [0]


def test_a_managers_visits_of_a_graphs_node_are_one_part_of_its_rollout() -> None:
    """A worker's two runs that differ are two units; a manager's two, of which one took three turns, are one."""
    first, second = runs_of_a_worker([1, 0])
    visits = [first, *[replace(second, turn=turn) for turn in range(1, 4)], *runs_of_a_worker([0.5], [0.5])[1:]]
    np.testing.assert_allclose(nested(visits)[-1], 0, atol=1e-12)
    at_the_top = [replace(item, agent_path="coder") for item in visits]
    np.testing.assert_allclose(nested(at_the_top), role(at_the_top))
    assert nested(at_the_top)[-1] > 0


def test_nested_is_what_aligning_by_random_copies_gives_on_average() -> None:
    """The paper's alignment: each rollout's runs are drawn to the same number; mean and variance over all that is drawn."""
    rollouts = [[1.0, 0.0, 0.0], [1.0], [0.0, 1.0]]
    copies, chance = 600, random.Random(1)
    drawn = [
        value
        for values in rollouts
        for value in [*values * (copies // len(values)), *chance.sample(values, copies % len(values))]
    ]
    ours = nested(runs_of_a_worker(*rollouts))
    theirs = [(value - np.mean(drawn)) for values in rollouts for value in values]
    np.testing.assert_allclose(ours / ours[0], np.array(theirs) / theirs[0])
    assert np.mean(drawn) == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)


def test_a_long_run_does_not_outvote_the_short_ones_beside_it() -> None:
    """A run of nine turns in vain and one of a single good turn: their rollout's worth to the worker is a half."""
    long, short = runs_of_a_worker([0, 1])
    other = replace(runs_of_a_worker([0.5])[0], rollout_id="other", invocation="other")
    turns = [*[replace(long, turn=turn) for turn in range(9)], short, other]
    assert nested(turns)[-1] == pytest.approx(0, abs=1e-12)
    assert role(turns)[-1] > 0


def test_without_invocations_a_workers_path_is_its_run() -> None:
    samples = [replace(item, invocation=None) for item in runs_of_a_worker([1, 1, 0], [0])]
    np.testing.assert_allclose(nested(samples), role(samples))


@given(samples=steps())
def test_loo_is_the_standardised_difference_without_its_scale(samples: list[Sample]) -> None:
    """With one call a role and rollout: reward − mean of the others = (reward − mean) · K / (K − 1)."""
    first = [item for item in samples if item.turn == 0]
    groups = Counter((item.task_id, item.role) for item in first)
    means: dict = defaultdict(float)
    for item in first:
        means[item.task_id, item.role] += item.reward / groups[item.task_id, item.role]
    for item, advantage in zip(first, loo(first), strict=True):
        size = groups[item.task_id, item.role]
        expected = 0.0 if size == 1 else (item.reward - means[item.task_id, item.role]) * size / (size - 1)
        assert advantage == pytest.approx(expected, abs=1e-9)


@given(samples=steps())
def test_without_states_both_state_methods_are_role(samples: list[Sample]) -> None:
    np.testing.assert_array_equal(state(samples), role(samples))
    np.testing.assert_array_equal(state_history(samples), role(samples))


def test_a_state_visited_twice_is_compared_by_discounted_return() -> None:
    """Both reach the end, b a call later: equal as rollouts, but a's way from the door was shorter."""
    a = [sample(1, "a", step=0, state_key="door"), sample(1, "a", turn=1, step=1)]
    b = [sample(1, "b", step=0, state_key="door"), sample(1, "b", turn=1, step=1), sample(1, "b", turn=2, step=2)]
    expected = np.array([1, 0, -1, 0, 0]) / 2**0.5
    np.testing.assert_allclose(state(a + b), expected)
    assert (role(a + b) == 0).all()


def test_a_shared_past_counts_more_than_a_shared_state() -> None:
    """All stand in the hall in the end; a and b came by the door, c by the window and in vain."""
    came = {"a": ("door", 1.0), "b": ("door", 0.0), "c": ("window", 0.0)}
    samples = [
        sample(reward, rollout_id, turn=turn, step=turn, state_key=key)
        for rollout_id, (way, reward) in came.items()
        for turn, key in enumerate((way, "hall"))
    ]
    by_state, by_history = state(samples) - role(samples), state_history(samples) - role(samples)
    in_hall = {item.rollout_id: place for place, item in enumerate(samples) if item.state_key == "hall"}
    assert by_state[in_hall["b"]] == pytest.approx(by_state[in_hall["c"]])
    assert by_history[in_hall["b"]] != pytest.approx(by_history[in_hall["c"]])


# What is carried from step to step


def test_ema_role_scores_before_it_takes_in() -> None:
    estimator = EmaRole(decay=0.5)
    assert estimator([sample(1, "a"), sample(0, "b")]).tolist() == [0, 0]
    np.testing.assert_allclose(estimator([sample(1, "c")]), [0.5])


@given(step=steps(), seed=st.integers(0, 1000))
def test_ema_role_does_not_depend_on_the_order_within_a_step(step: list[Sample], seed: int) -> None:
    one, other = EmaRole(), EmaRole()
    one(step)
    other(random.Random(seed).sample(step, len(step)))
    np.testing.assert_allclose(one(step), other(step), rtol=1e-9, atol=1e-12)


@given(before=steps(), after=steps())
def test_ema_role_goes_on_where_it_was(before: list[Sample], after: list[Sample]) -> None:
    one = advantages.check("ema_role")
    one(before)
    resumed = advantages.check("ema_role")
    resumed.recall(json.loads(json.dumps(one.remembered())))
    np.testing.assert_array_equal(one(after), resumed(after))


def test_ema_role_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ConfigError, match="ema_role"):
        EmaRole().recall({"coder": "much"})


def test_each_run_has_a_memory_of_its_own() -> None:
    first, second = advantages.check("ema_role"), advantages.check("ema_role")
    first([sample(5, "a")])
    assert second([sample(1, "b")]).tolist() == [0]


# With a critic


@st.composite
def valued(draw: st.DrawFn) -> list[Sample]:
    """A step in which every turn has a value and a step reward."""
    return [replace(item, value=draw(quarters), step_reward=draw(quarters)) for item in draw(steps())]


def chains_of(samples: Sequence[Sample]) -> list[list[int]]:
    chains: dict = defaultdict(list)
    for place in sorted(range(len(samples)), key=lambda place: samples[place].step):
        chains[samples[place].rollout_id, samples[place].role].append(place)
    return list(chains.values())


def plain_gae(samples: Sequence[Sample], discount: float, trace: float) -> np.ndarray:
    """As the paper writes it: the sum over l of (discount · trace)^l · δ_(t+l)."""
    advantages_N = np.zeros(len(samples))
    for chain in chains_of(samples):
        values = [samples[place].value for place in chain] + [0.0]
        deltas = [samples[place].step_reward + discount * values[at + 1] - values[at] for at, place in enumerate(chain)]
        for at, place in enumerate(chain):
            advantages_N[place] = sum((discount * trace) ** later * delta for later, delta in enumerate(deltas[at:]))
    return advantages_N


@given(samples=valued(), discount=st.sampled_from([0.0, 0.9, 1.0]), trace=st.sampled_from([0.0, 0.5, 1.0]))
def test_turn_gae_is_the_papers_sum_whitened_by_role(samples: list[Sample], discount: float, trace: float) -> None:
    expected = plain_gae(samples, discount, trace)
    estimator = TurnGae(discount, trace)
    values = np.array([item.value for item in samples])
    np.testing.assert_allclose(estimator.returns(samples), expected + values, rtol=1e-9, atol=1e-9)
    whitened = estimator(samples)
    for name in {item.role for item in samples}:
        places = [place for place, item in enumerate(samples) if item.role == name]
        spread = np.std(expected[places], ddof=1) if len(places) > 1 else 0.0
        wanted = (expected[places] - expected[places].mean()) / spread if spread > 1e-9 else np.zeros(len(places))
        np.testing.assert_allclose(whitened[places], wanted, rtol=1e-6, atol=1e-8)


@given(samples=valued())
def test_without_discount_the_critics_targets_are_what_was_earned_from_there_on(samples: list[Sample]) -> None:
    returns_N = TurnGae(1.0, 1.0).returns(samples)
    for chain in chains_of(samples):
        for at, place in enumerate(chain):
            earned = sum(samples[later].step_reward for later in chain[at:])
            assert returns_N[place] == pytest.approx(earned, abs=1e-9)


@given(samples=valued(), seed=st.integers(0, 1000), scale=st.sampled_from([0.25, 3.0, 1000.0]))
def test_turn_gae_depends_on_no_order_or_scale(samples: list[Sample], seed: int, scale: float) -> None:
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    changed = [
        replace(samples[place], step_reward=scale * samples[place].step_reward, value=scale * samples[place].value)
        for place in order
    ]
    np.testing.assert_allclose(TurnGae()(changed), TurnGae()(samples)[order], rtol=1e-6, atol=1e-8)


def test_a_critic_tells_the_turn_that_lost_from_the_one_before() -> None:
    """Worth 0.5 at first, 0.9 after a good turn, then lost: the second turn is to blame."""
    lost = [replace(sample(0, "a"), value=0.5, step_reward=0.0)]
    lost += [replace(sample(0, "a", turn=1, step=1), value=0.9, step_reward=0.0)]
    first, second = TurnGae(1.0, 0.0)(lost)
    assert first > 0 > second
    assert (role([*lost, sample(1, "b")])[:2] < 0).all()


def test_turns_under_two_paths_are_two_chains() -> None:
    one = replace(sample(0, "a"), agent_path="boss/one", value=0.0, step_reward=1.0)
    other = replace(sample(0, "a", turn=1, step=1), agent_path="boss/two", value=0.25, step_reward=0.0)
    np.testing.assert_allclose(TurnGae().returns([one, other]), [1.0, 0.0])


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_value_is_an_error_that_says_whose(value: float | None) -> None:
    with pytest.raises(ConfigError, match=r"critic's value.*role 'coder', turn 3, in rollout a.*Train a critic"):
        TurnGae()([replace(sample(1, "a", turn=3), step_reward=1.0, value=value)])


def test_a_missing_step_reward_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"role 'coder', turn 0, in rollout a.*step_reward"):
        TurnGae()([replace(sample(1, "a"), value=0.0)])


def test_a_choice_tells_whether_a_critic_must_be_asked() -> None:
    assert not advantages.check("role").needs_values
    mixed = advantages.check({"coder": "turn_gae", "reviewer": "role"})
    assert mixed.needs_values
    assert [mixed.needs_values_of(name) for name in ("coder", "reviewer", "nobody")] == [True, False, False]


# The choice by name


def test_options_reach_the_estimator() -> None:
    chosen = advantages.check({"coder": "turn_gae"}, {"turn_gae": {"discount": 0.5, "trace": 0.0}})
    samples = [replace(sample(0, "a", turn=at, step=at), value=4.0 * at, step_reward=0.0) for at in range(3)]
    np.testing.assert_allclose(chosen(samples), TurnGae(0.5, 0.0)(samples))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("role", {"role": {"trace": 1.0}}, r"'role' takes no options; trace"),
        (
            "turn_gae",
            {"turn_gae": {"lambda": 1.0}},
            r"'turn_gae': got an unexpected keyword argument 'lambda'.*discount, trace",
        ),
        ("turn_gae", {"turn_gae": {"trace": 2.0}}, r"trace = 2.0.*between 0 and 1"),
        ("ema_role", {"ema_role": {"decay": 1.0}}, r"decay = 1.0"),
        ("role", {"turn_gae": {"trace": 1.0}}, r"no role uses 'turn_gae'"),
    ],
)
def test_options_that_do_not_fit_are_errors(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        advantages.check(name, options)


MIXED = advantages.check({"analyst": "rollout", "coder": "rollout", "reviewer": "role"})


def test_one_name_for_all_is_the_estimator_itself() -> None:
    samples = [sample(1, "a"), sample(0, "b", role="reviewer"), sample(0.5, "c")]
    np.testing.assert_array_equal(advantages.estimate(samples, "rollout"), rollout(samples))


@given(samples=steps())
def test_each_role_goes_to_the_estimator_that_it_chose(samples: list[Sample]) -> None:
    chosen = MIXED(samples)
    others = [place for place, item in enumerate(samples) if item.role != "reviewer"]
    reviewers = [place for place, item in enumerate(samples) if item.role == "reviewer"]
    np.testing.assert_array_equal(chosen[others], rollout([samples[place] for place in others]))
    np.testing.assert_array_equal(chosen[reviewers], role([samples[place] for place in reviewers]))


def test_an_unknown_estimator_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no estimator 'grop'.*loo, nested, role, role_turn, rollout"):
        advantages.estimate([sample(1, "a")], "grop")


def test_a_role_without_an_estimator_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no estimator is named for role 'reviewer'.*coder"):
        advantages.estimate([sample(1, "a"), sample(1, "a", role="reviewer")], {"coder": "role"})


def test_a_mapping_that_names_an_unknown_role_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"role 'codr' made no call.*coder"):
        advantages.estimate([sample(1, "a")], {"coder": "role", "codr": "role"})


def test_a_checked_choice_lets_a_role_be_silent_in_a_step() -> None:
    chosen = advantages.check({"coder": "role", "reviewer": "role"})
    np.testing.assert_allclose(chosen([sample(1, "a"), sample(0, "b")]), np.array([1, -1]) / 2**0.5)


def test_no_samples_give_no_advantages() -> None:
    assert advantages.estimate([], "role").shape == (0,)
    assert advantages.estimate([], {"coder": "role"}).shape == (0,)


def test_an_empty_mapping_is_an_error() -> None:
    with pytest.raises(ConfigError, match="empty"):
        advantages.check({})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Puts a package with an entry point of the group ``coterie.advantages`` on the path."""

    def put(name: str, entry: str, source: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{advantages.GROUP}]\n{entry}\n")
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return put


def test_another_package_offers_an_estimator(install: Callable[[str, str, str], None]) -> None:
    install("own_credit", "raw = own_credit:raw", "def raw(samples):\n    return [s.reward for s in samples]\n")
    assert advantages.estimate([sample(3, "a")], "raw").tolist() == [3]
    assert "raw" in advantages.names()


def test_a_broken_package_is_named(install: Callable[[str, str, str], None]) -> None:
    install("broken_credit", "broken = broken_credit:broken", "import no_such_module\n")
    with pytest.raises(ConfigError, match=r"broken_credit:broken.*ModuleNotFoundError.*no_such_module"):
        advantages.get("broken")


def test_two_offers_of_one_name_are_an_error(install: Callable[[str, str, str], None]) -> None:
    install("pretender", "rollout = pretender:rollout", "def rollout(samples):\n    return [9.0] * len(samples)\n")
    with pytest.raises(ConfigError, match=r"two packages offer 'rollout'.*pretender:rollout"):
        advantages.get("rollout")


@pytest.mark.parametrize(
    ("value", "message"), [("[1.0]", "shape"), ("[float('nan')] * len(samples)", "role 'coder' of rollout a")]
)
def test_a_wrong_answer_of_an_estimator_is_an_error(
    install: Callable[[str, str, str], None], value: str, message: str
) -> None:
    install("wrong_credit", "wrong = wrong_credit:wrong", f"def wrong(samples):\n    return {value}\n")
    with pytest.raises(ConfigError, match=rf"'wrong' gave.*{message}"):
        advantages.estimate([sample(1, "a"), sample(0, "b")], "wrong")


# verl's own


@pytest.mark.train
@pytest.mark.parametrize(
    ("estimator", "theirs"),
    [*((each, "grpo") for each in (*KEYS, transition)), (loo, "rloo")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_with_one_call_a_rollout_it_is_verls_own(
    estimator: Estimator, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    chance = np.random.default_rng(0)
    for _ in range(50):
        tasks, siblings, length = chance.integers(1, 6), int(chance.integers(2, 9)), int(chance.integers(1, 7))
        samples = [
            sample(float(chance.choice([0.0, 0.5, 1.0, chance.normal()])), f"{task}.{number}", task=str(task))
            for task in range(tasks)
            for number in range(siblings)
        ]
        mask = torch.ones(len(samples), length)
        scores = torch.zeros(len(samples), length)
        scores[:, -1] = torch.tensor([item.reward for item in samples])
        verls, _ = get_adv_estimator_fn(theirs)(
            token_level_rewards=scores, response_mask=mask, index=np.array([item.task_id for item in samples])
        )
        # verl adds 1e-6 to the deviation and computes in single precision.
        np.testing.assert_allclose(estimator(samples), verls[:, 0].numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.train
def test_with_one_token_a_turn_turn_gae_is_verls_gae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    import torch
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    chance = np.random.default_rng(1)
    for _ in range(50):
        rollouts, longest = int(chance.integers(2, 6)), int(chance.integers(1, 7))
        discount, trace = chance.choice([0.5, 0.9, 1.0], 2)
        mask = torch.zeros(rollouts, longest, dtype=torch.float64)
        for row in range(rollouts):
            mask[row, : int(chance.integers(1, longest + 1))] = 1
        rewards = torch.tensor(chance.normal(size=(rollouts, longest))) * mask
        values = torch.tensor(chance.normal(size=(rollouts, longest))) * mask
        places = [(row, at) for row in range(rollouts) for at in range(longest) if mask[row, at]]
        samples = [
            replace(
                sample(0, str(row), turn=at, step=at), step_reward=float(rewards[row, at]), value=float(values[row, at])
            )
            for row, at in places
        ]
        verls, returns = compute_gae_advantage_return(rewards, values, mask, discount, trace)
        ours = TurnGae(float(discount), float(trace))
        np.testing.assert_allclose(ours.returns(samples), [float(returns[place]) for place in places], rtol=1e-6)
        # verl adds 1e-8 to the variance.
        np.testing.assert_allclose(ours(samples), [float(verls[place]) for place in places], rtol=1e-5, atol=1e-6)
